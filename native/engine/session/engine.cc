#include "session/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace reap {

namespace {

// Reader threads, which fetch ahead while the workers install: together with them enough to fill
// the queue of one disk.
constexpr unsigned kReaders = 2;

}  // namespace

Engine::Engine(Emit emit, std::unique_ptr<Reactor> reactor)
    : reactor_(std::move(reactor)),
      prefetcher_(std::make_unique<Prefetcher>(std::clamp(reactor_->cores(), 2U, 4U), kReaders)),
      environment_{*reactor_, *prefetcher_, std::move(emit), [this](uint64_t id) { release(id); }} {
}

// Returns 0 or a negative errno.
int Engine::start() {
  if (const int error = prefetcher_->error()) return error;
  return reactor_->start(
      [this](uint64_t id, Reactor::Role role, ServeBuffers& buffers) {
        if (const std::shared_ptr<Session> session = find(id)) session->on_event(role, buffers);
      },
      [&prefetcher = *prefetcher_] { return prefetcher.busy_workers(); });
}

std::unique_ptr<Engine> Engine::create(Emit emit, Failure* failure) {
  int error = 0;
  auto reactor = Reactor::create(&error);
  if (!reactor) {
    *failure = failed_call(ErrorCode::native_unavailable, error, "epoll_create1");
    return nullptr;
  }
  std::unique_ptr<Engine> engine(new Engine(std::move(emit), std::move(reactor)));
  error = engine->start();
  if (error == 0) return engine;
  *failure = no_thread(error);
  return nullptr;
}

uint64_t Engine::open(SessionOptions options, std::shared_ptr<Counters> counters,
                      std::shared_ptr<TraceRecorder> trace, Failure* failure) {
  std::shared_ptr<Session> session;
  uint64_t id;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    id = next_id_++;
    session = std::make_shared<Session>(environment_, id, std::move(options), std::move(counters),
                                        std::move(trace));
    sessions_.emplace(id, session);
  }
  *failure = session->start();
  if (!*failure) return id;
  release(id);
  return 0;
}

std::shared_ptr<Session> Engine::find(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

void Engine::release(uint64_t id) {
  reactor_->forget(id);
  std::shared_ptr<Session> session;  // destroyed after the lock: this may be the last owner
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  session = std::move(found->second);
  sessions_.erase(found);
}

void Engine::shutdown() {
  std::vector<std::shared_ptr<Session>> open;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(shut_down_, true)) return;
    for (auto& [id, session] : sessions_) open.push_back(session);
  }
  for (auto& session : open) session->abandon();
  open.clear();
  reactor_->stop();
  prefetcher_.reset();
  std::lock_guard<std::mutex> lock(mutex_);
  sessions_.clear();
}

}  // namespace reap
