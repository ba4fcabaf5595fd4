#include "session/engine.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace reap {

namespace {

// Reader threads, which fetch ahead while the workers install: together with them enough to fill
// the queue of one disk.
constexpr unsigned kReaders = 2;

constexpr auto kPrefetchWatch = std::chrono::milliseconds(50);
// Timers of the engine itself have an id that no session has.
constexpr uint64_t kNoSession = UINT64_MAX;
// Time that a thread may still use a session whose VM is dead or left, before its end is reported.
constexpr auto kEndTimeout = std::chrono::seconds(1);
constexpr auto kShutdownTimeout = std::chrono::seconds(2);

}  // namespace

Engine::Engine(Emit emit, std::unique_ptr<Reactor> reactor)
    : reactor_(std::move(reactor)),
      prefetcher_(
          std::clamp(reactor_->cores(), 2U, 4U), kReaders, threads_,
          [this] { reactor_->after(kPrefetchWatch, kNoSession, Reactor::Role::prefetch_watch); }),
      environment_{*reactor_, prefetcher_, [this](Event&& event) { this->emit(std::move(event)); },
                   [this](uint64_t id) { release(id); }, [this](uint64_t id) { forget(id); }},
      emit_(std::move(emit)) {}

// Returns 0 or a negative errno.
int Engine::start() {
  if (const int error = prefetcher_.error()) return error;
  return reactor_->start(
      threads_,
      [this](uint64_t id, Reactor::Role role, ServeBuffers& buffers) {
        dispatch(id, role, buffers);
      },
      [this] { return prefetcher_.busy_workers(); });
}

std::shared_ptr<Engine> Engine::create(Emit emit, Failure* failure) {
  int error = 0;
  auto reactor = Reactor::create(&error);
  if (!reactor) {
    *failure = failed_call(ErrorCode::native_unavailable, error, "epoll_create1");
    return nullptr;
  }
  std::shared_ptr<Engine> engine(new Engine(std::move(emit), std::move(reactor)));
  error = engine->start();
  if (error == 0) return engine;
  *failure = no_thread(error);
  engine->shutdown();
  return nullptr;
}

void Engine::dispatch(uint64_t id, Reactor::Role role, ServeBuffers& buffers) {
  if (role == Reactor::Role::prefetch_watch) {
    prefetcher_.replace_stuck_threads();
  } else if (role == Reactor::Role::end_deadline) {
    report_end(id);
  } else if (const std::shared_ptr<Session> session = find(id)) {
    session->on_event(role, buffers);
  }
}

void Engine::emit(Event&& event) {
  event.at = std::chrono::steady_clock::now();
  const std::lock_guard<std::mutex> lock(emit_mutex_);
  if (emit_) emit_(std::move(event));
}

uint64_t Engine::open(SessionOptions options, std::shared_ptr<Measurements> measurements,
                      Failure* failure) {
  std::shared_ptr<Session> session;
  uint64_t id;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    id = next_id_++;
    session =
        std::make_shared<Session>(environment_, id, std::move(options), std::move(measurements));
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
  std::shared_ptr<Session> session;  // destroyed after the lock: this may be the last owner
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  session = std::move(found->second);
  sessions_.erase(found);
  // Others than the caller may have it: a thread that waits for storage that hangs.
  released_.emplace(id, session);
  reactor_->after(kEndTimeout, id, Reactor::Role::end_deadline);
}

void Engine::forget(uint64_t id) {
  reactor_->forget(id);
  std::lock_guard<std::mutex> lock(mutex_);
  released_.erase(id);
}

void Engine::report_end(uint64_t id) {
  std::shared_ptr<Session> session;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = released_.find(id);
    if (found != released_.end()) session = found->second.lock();
  }
  if (session) session->report_end();
}

void Engine::shutdown() {
  std::unordered_map<uint64_t, std::shared_ptr<Session>> sessions;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(shut_down_, true)) return;
    sessions = sessions_;
  }
  for (auto& [id, session] : sessions) session->abandon();
  sessions.clear();
  reactor_->stop();
  prefetcher_.stop();
  if (!threads_.wait_for_end(kShutdownTimeout)) threads_.keep(shared_from_this());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    sessions.swap(sessions_);
  }
  sessions.clear();
  const std::lock_guard<std::mutex> lock(emit_mutex_);
  emit_ = nullptr;
}

}  // namespace reap
