#include "base/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace reap {

namespace {

constexpr size_t kUsualThreads = 4;
// Beyond it, work waits.
constexpr size_t kMaxThreads = 128;
// Time for which work waits while the usual threads are busy: they may wait for storage that hangs.
constexpr auto kLate = std::chrono::milliseconds(20);
constexpr auto kIdle = std::chrono::milliseconds(500);

}  // namespace

ThreadPool& ThreadPool::shared() {
  static auto* const pool = new ThreadPool;
  return *pool;
}

int ThreadPool::run(std::function<void()> work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (const int error = ensure_idle_thread(); error != 0 && busy_ == 0) return error;
  queue_.push_back({std::move(work), Clock::now()});
  changed_.notify_one();
  return 0;
}

// There is always one for the work that waits: it takes what is late. The mutex is held.
int ThreadPool::ensure_idle_thread() {
  if (idle_ > 0 || busy_ >= kMaxThreads) return 0;
  const int error = threads_.start([this] { serve(); });
  if (error == 0) ++idle_;
  return error;
}

// False for an idle thread that is to end.
bool ThreadPool::next(std::unique_lock<std::mutex>& lock, Work* work) {
  const auto end = Clock::now() + kIdle;
  for (;;) {
    const auto now = Clock::now();
    const bool is_late = !queue_.empty() && now - queue_.front().since >= kLate;
    if (!queue_.empty() && (busy_ < kUsualThreads || is_late)) break;
    if (queue_.empty() && now >= end) return false;
    changed_.wait_until(lock, queue_.empty() ? end : queue_.front().since + kLate);
  }
  *work = std::move(queue_.front());
  queue_.pop_front();
  return true;
}

void ThreadPool::serve() {
  pthread_setname_np(pthread_self(), "reap-file");
  std::unique_lock<std::mutex> lock(mutex_);
  for (Work work; next(lock, &work);) {
    --idle_;
    ++busy_;
    if (!queue_.empty()) ensure_idle_thread();
    lock.unlock();
    work.run();
    work.run = nullptr;
    lock.lock();
    --busy_;
    ++idle_;
  }
  --idle_;
}

}  // namespace reap
