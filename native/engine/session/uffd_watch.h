// Decides who polls for the next fault of a VM: the demand thread that epoll wakes, a prefetch
// worker between two installs, or a timer.
#pragma once

#include <sys/epoll.h>

#include <atomic>
#include <chrono>
#include <cstdint>

#include "session/reactor.h"
#include "uffd/fault_handler.h"

namespace reap {

class UffdWatch {
 public:
  // `device` is that of the memory file.
  UffdWatch(Reactor& reactor, uint64_t session, uint64_t device)
      : reactor_(reactor), session_(session), device_(device) {}

  // Must be called first. False with errno set if the kernel cannot watch more descriptors.
  bool start(const FaultHandler& handler);
  void stop();

  // Called after a demand thread has served all pending faults.
  void resume();
  // Serves again after `delay`; at most one such timer is pending.
  void serve_again(std::chrono::nanoseconds delay) { schedule(again_, delay); }
  // The same for faults that may not wait for the disk now: later with each call in a row, so that
  // a disk that hangs costs next to nothing.
  void serve_when_free();
  void reset_delay() { delay_us_.store(0, std::memory_order_relaxed); }
  // Held faults wake with their pages; this timer is for those whose page does not come.
  void serve_held() { schedule(held_, FaultHandler::kMaxHold / 2); }
  // A timer of this role has fired; the caller serves.
  void fired(Reactor::Role role);

  // From here on a worker installs, and polls for faults in between.
  void begin_installs() { workers_.fetch_add(1); }
  void end_installs();

  // Permission for a serving thread to wait for the disk.
  bool begin_blocking();
  // Called before each wait: other threads serve this VM meanwhile.
  void admit_others();
  void end_blocking();

 private:
  struct Timer {
    const Reactor::Role role;
    std::atomic<bool> pending{false};
  };
  void schedule(Timer& timer, std::chrono::nanoseconds delay);
  void rearm() { reactor_.rearm(session_, Reactor::Role::uffd, handler_->fd(), EPOLLIN); }

  Reactor& reactor_;
  const uint64_t session_;
  const uint64_t device_;
  const FaultHandler* handler_ = nullptr;  // set before the uffd is watched
  std::atomic<unsigned> workers_{0};       // prefetch workers that look for faults
  std::atomic<unsigned> blocking_{0};      // threads that wait for the disk
  std::atomic<int64_t> delay_us_{0};       // of the last serve_when_free()
  Timer again_{Reactor::Role::serve_again};
  Timer held_{Reactor::Role::serve_held};
  Timer poll_fallback_{Reactor::Role::poll_fallback};
};

}  // namespace reap
