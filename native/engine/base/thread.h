// A thread whose creation may fail: std::thread throws then, which ends a program without
// exceptions.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <cerrno>
#include <functional>
#include <memory>
#include <utility>

#include "base/test_hooks.h"

namespace reap {

// Joins when destroyed.
class Thread {
 public:
  Thread() = default;
  Thread(Thread&& other) noexcept
      : thread_(other.thread_), joinable_(std::exchange(other.joinable_, false)) {}
  Thread& operator=(Thread&& other) noexcept {
    if (this == &other) return *this;
    join();
    thread_ = other.thread_;
    joinable_ = std::exchange(other.joinable_, false);
    return *this;
  }
  ~Thread() { join(); }

  // Joins a thread that was started before. Returns 0 or a negative errno: -EAGAIN at RLIMIT_NPROC
  // or pids.max, or without memory for a stack.
  int start(std::function<void()> body) {
    join();
    if (REAP_HOOK_SAYS(refuses_thread)) return -EAGAIN;
    auto owned = std::make_unique<std::function<void()>>(std::move(body));
    const int error = ::pthread_create(&thread_, nullptr, run, owned.get());
    if (error != 0) return -error;
    owned.release();
    joinable_ = true;
    return 0;
  }
  void join() {
    if (std::exchange(joinable_, false)) ::pthread_join(thread_, nullptr);
  }
  explicit operator bool() const { return joinable_; }

 private:
  static void* run(void* body) {
    const std::unique_ptr<std::function<void()>> owned(static_cast<std::function<void()>*>(body));
    (*owned)();
    return nullptr;
  }

  pthread_t thread_{};
  bool joinable_ = false;
};

// True if the thread of this process has a core or waits for one, and false if it waits for
// something else, such as a file. Without /proc, false.
bool is_runnable(pid_t thread);

}  // namespace reap
