#include "base/thread_group.h"

#include <pthread.h>

#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/test_hooks.h"

namespace reap {

struct ThreadGroup::State {
  std::mutex mutex;
  std::condition_variable ended;
  size_t count = 0;
  std::shared_ptr<void> kept;
};

struct ThreadGroup::Start {
  std::shared_ptr<State> state;
  std::function<void()> body;
};

ThreadGroup::ThreadGroup() : state_(std::make_shared<State>()) {}

void* ThreadGroup::run(void* start) {
  std::shared_ptr<State> state;
  {
    const std::unique_ptr<Start> owned(static_cast<Start*>(start));
    state = owned->state;
    owned->body();
  }
  std::shared_ptr<void> kept;  // destroyed without the lock
  const std::lock_guard<std::mutex> lock(state->mutex);
  if (--state->count == 0) kept = std::move(state->kept);
  state->ended.notify_all();
  return nullptr;
}

int ThreadGroup::start(std::function<void()> body) const {
  if (REAP_HOOK_SAYS(refuses_thread)) return -EAGAIN;
  auto start = std::make_unique<Start>(Start{state_, std::move(body)});
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    ++state_->count;
  }
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread{};
  const int error = ::pthread_create(&thread, &attributes, run, start.get());
  ::pthread_attr_destroy(&attributes);
  if (error == 0) {
    static_cast<void>(start.release());
    return 0;
  }
  const std::lock_guard<std::mutex> lock(state_->mutex);
  --state_->count;
  return -error;
}

bool ThreadGroup::wait_for_end(std::chrono::milliseconds limit) const {
  const auto until = std::chrono::system_clock::now() + limit;
  std::unique_lock<std::mutex> lock(state_->mutex);
  while (state_->count > 0) {
    if (state_->ended.wait_until(lock, until) == std::cv_status::timeout) break;
  }
  return state_->count == 0;
}

void ThreadGroup::keep(std::shared_ptr<void> used) const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  if (state_->count > 0) state_->kept.swap(used);
}

}  // namespace reap
