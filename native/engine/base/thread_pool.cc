#include "base/thread_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/thread.h"

namespace reap {

namespace {

constexpr size_t kUsualThreads = 4;
// Beyond it, work waits.
constexpr size_t kMaxThreads = 128;
// Time for which work waits while the usual number of threads is busy. After it, those that wait do
// not count: their storage may hang.
constexpr auto kLate = std::chrono::milliseconds(20);
constexpr auto kIdle = std::chrono::milliseconds(500);

}  // namespace

ThreadPool& ThreadPool::shared() {
  static auto* const pool = new ThreadPool;
  return *pool;
}

int ThreadPool::run(std::function<void()> work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = ensure_idle_thread(); error != 0 && busy_.empty()) return error;
  queue_.push_back({std::move(work), Clock::now()});
  changed_.notify_one();
  return 0;
}

// There is always one for the work that waits: it takes what is late. The mutex is held.
int ThreadPool::ensure_idle_thread() {
  if (idle_ > 0 || busy_.size() >= kMaxThreads) return 0;
  const int error = threads_.start([this] { serve(); });
  if (error == 0) ++idle_;
  return error;
}

// The mutex is held.
bool ThreadPool::may_begin(Clock::time_point now) const {
  if (queue_.empty()) return false;
  if (busy_.size() < kUsualThreads) return true;
  if (now - queue_.front().since < kLate) return false;
  size_t runnable = 0;
  for (auto thread = busy_.begin(); thread != busy_.end() && runnable < kUsualThreads; ++thread) {
    if (is_runnable(*thread)) ++runnable;
  }
  return runnable < kUsualThreads;
}

// False for an idle thread that is to end.
bool ThreadPool::next(std::unique_lock<std::mutex>& lock, Work* work) {
  const auto end = Clock::now() + kIdle;
  for (;;) {
    const auto now = Clock::now();
    if (may_begin(now)) break;
    if (queue_.empty() && now >= end) return false;
    const bool is_late = !queue_.empty() && now - queue_.front().since >= kLate;
    changed_.wait_until(lock, queue_.empty() ? end
                              : is_late      ? now + kLate
                                             : queue_.front().since + kLate);
  }
  *work = std::move(queue_.front());
  queue_.pop_front();
  return true;
}

void ThreadPool::serve() {
  pthread_setname_np(pthread_self(), "reap-file");
  const pid_t self = ::gettid();
  std::unique_lock<std::mutex> lock(mutex_);
  for (Work work; next(lock, &work);) {
    --idle_;
    busy_.insert(self);
    if (!queue_.empty()) ensure_idle_thread();
    lock.unlock();
    work.run();
    work.run = nullptr;
    lock.lock();
    busy_.erase(self);
    ++idle_;
  }
  --idle_;
}

}  // namespace reap
