// Who looks for the next fault of a VM: the demand thread that epoll wakes, a prefetch worker
// between two installs, or a timer.
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
  UffdWatch(Reactor& reactor, uint64_t session) : reactor_(reactor), session_(session) {}

  // Before any other call. False with errno set when the kernel watches no more descriptors.
  bool start(const FaultHandler& handler);
  void stop();

  // A demand thread has served what there was.
  void resume();
  // Serves once more after `delay`; one timer at a time.
  void serve_again(std::chrono::nanoseconds delay) { schedule(again_, delay); }
  // Faults that are held wake with their pages; this is for those whose page does not come.
  void serve_held() { schedule(held_, FaultHandler::kMaxHold / 2); }
  // A timer of this role has fired, and the caller serves.
  void fired(Reactor::Role role);

  // A worker installs from here on, and looks for faults in between.
  void begin_installs() { workers_.fetch_add(1); }
  void end_installs();

  // Permission for a thread that serves to wait for the disk.
  bool begin_blocking();
  // Before each wait: other threads serve this VM meanwhile.
  void let_others_in();
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
  const FaultHandler* handler_ = nullptr;  // set before the uffd is watched
  std::atomic<unsigned> workers_{0};       // prefetch workers that look for faults
  std::atomic<unsigned> blocking_{0};      // threads that wait for the disk
  Timer again_{Reactor::Role::serve_again};
  Timer held_{Reactor::Role::serve_held};
  Timer workers_check_{Reactor::Role::look_after_workers};
};

}  // namespace reap
