// Threads that end by themselves. One that waits for storage that hangs may never end, so nobody
// waits for it without a limit.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace reap {

// A handle: copies are of the same threads.
class ThreadGroup {
 public:
  ThreadGroup();
  // Returns 0 or a negative errno, as Thread::start() does. `body` is destroyed before its thread
  // counts as ended.
  int start(std::function<void()> body) const;
  // False if a thread is still there after `limit`.
  bool wait_for_end(std::chrono::milliseconds limit = std::chrono::hours(24)) const;
  // Keeps what the threads use until the last of them has ended.
  void keep(std::shared_ptr<void> used) const;

 private:
  struct State;
  struct Start;
  static void* run(void* start);

  std::shared_ptr<State> state_;
};

}  // namespace reap
