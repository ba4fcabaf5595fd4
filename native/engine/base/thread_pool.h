// Threads for work that may wait for storage that hangs: opening and closing files. A few do all of
// it; more are started only while these wait for storage, and end when they have been idle.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <set>

#include "base/thread_group.h"

namespace reap {

class ThreadPool {
 public:
  // Of the whole process; its threads are never waited for.
  static ThreadPool& shared();
  // Returns 0 or a negative errno: there is no thread, and none can be started (base/thread.h).
  int run(std::function<void()> work);

 private:
  using Clock = std::chrono::system_clock;
  struct Work {
    std::function<void()> run;
    Clock::time_point since;
  };
  int ensure_idle_thread();
  bool may_begin(Clock::time_point now) const;
  bool next(std::unique_lock<std::mutex>& lock, Work* work);
  void serve();

  const ThreadGroup threads_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<Work> queue_;
  std::set<pid_t> busy_;
  size_t idle_ = 0;  // threads without work, and those that begin
};

}  // namespace reap
