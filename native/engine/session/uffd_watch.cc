#include "session/uffd_watch.h"

#include "base/page.h"

namespace reap {

namespace {

// Threads that one VM's cold pages may hold at the same time.
constexpr unsigned kMaxBlocking = 2;
constexpr auto kWorkersCheck = std::chrono::milliseconds(1);

}  // namespace

bool UffdWatch::start(const FaultHandler& handler) {
  handler_ = &handler;
  return reactor_.watch(session_, Reactor::Role::uffd, handler.fd(), EPOLLIN);
}

void UffdWatch::stop() {
  if (handler_) reactor_.unwatch(handler_->fd());
}

// Where there are few cores, a fault that wakes a demand thread takes the one of a worker or of the
// guest. A worker that installs finds the fault sooner and cheaper when it looks, so the uffd is
// left to it; but not when it installs huge pages, of which one takes as long as ten looks.
//
// Whether a worker gets to run is the scheduler's to say, so it is relied on for a moment at a
// time. (Faults that it has read already, microseconds before it lost its core, wait for it to come
// back.) Test: "a guest whose worker does not run is served all the same".
void UffdWatch::resume() {
  if (workers_.load() == 0 || reactor_.has_core_to_spare() ||
      handler_->memory().page_size() >= kHugePage) {
    rearm();
  } else {
    schedule(workers_check_, kWorkersCheck);
  }
}

// Who saw this worker install has left the uffd to it.
void UffdWatch::end_installs() {
  if (workers_.fetch_sub(1) == 1) rearm();
}

bool UffdWatch::begin_blocking() {
  if (blocking_.fetch_add(1, std::memory_order_relaxed) >= kMaxBlocking ||
      !reactor_.begin_blocking()) {
    blocking_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  return true;
}

void UffdWatch::let_others_in() {
  rearm();
  if (handler_->has_waiting()) serve_again(std::chrono::nanoseconds(0));
  if (handler_->holds_faults()) serve_held();
}

void UffdWatch::end_blocking() {
  reactor_.end_blocking();
  blocking_.fetch_sub(1, std::memory_order_relaxed);
}

void UffdWatch::schedule(Timer& timer, std::chrono::nanoseconds delay) {
  // Each call that leaves something would add another chain of timers.
  if (timer.pending.exchange(true, std::memory_order_relaxed)) return;
  reactor_.after(delay, session_, timer.role);
}

void UffdWatch::fired(Reactor::Role role) {
  for (Timer* timer : {&again_, &held_, &workers_check_}) {
    if (timer->role == role) timer->pending.store(false, std::memory_order_relaxed);
  }
}

}  // namespace reap
