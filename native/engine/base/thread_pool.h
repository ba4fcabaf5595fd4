// Threads for work that may wait for storage that hangs: opening and closing files. There are as
// many as there is such work, and they end when they have been idle.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>

#include "base/thread_group.h"

namespace reap {

class ThreadPool {
 public:
  // Of the whole process; its threads are never waited for.
  static ThreadPool& shared();
  // Returns 0 or a negative errno: there is no thread, and none can be started (base/thread.h).
  int run(std::function<void()> work);

 private:
  void serve();

  const ThreadGroup threads_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  size_t count_ = 0;  // threads
  size_t idle_ = 0;
};

}  // namespace reap
