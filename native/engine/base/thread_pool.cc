#include "base/thread_pool.h"

#include <pthread.h>

#include <chrono>
#include <utility>

namespace reap {

namespace {

// Beyond it, work waits.
constexpr size_t kMaxThreads = 128;
constexpr auto kIdle = std::chrono::milliseconds(500);

}  // namespace

ThreadPool& ThreadPool::shared() {
  static auto* const pool = new ThreadPool;
  return *pool;
}

int ThreadPool::run(std::function<void()> work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (idle_ <= queue_.size() && count_ < kMaxThreads) {
    const int error = threads_.start([this] { serve(); });
    if (error == 0) {
      ++count_;
    } else if (count_ == 0) {
      return error;
    }
  }
  queue_.push_back(std::move(work));
  changed_.notify_one();
  return 0;
}

void ThreadPool::serve() {
  pthread_setname_np(pthread_self(), "reap-file");
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto until = std::chrono::system_clock::now() + kIdle;
    ++idle_;
    while (queue_.empty() && changed_.wait_until(lock, until) == std::cv_status::no_timeout) {
    }
    --idle_;
    if (queue_.empty()) break;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
  --count_;
}

}  // namespace reap
