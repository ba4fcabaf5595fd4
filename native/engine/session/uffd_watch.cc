#include "session/uffd_watch.h"

#include <algorithm>

#include "base/page.h"

namespace reap {

namespace {

// Maximum number of threads that wait for the disk for one VM.
constexpr unsigned kMaxBlocking = 2;
constexpr auto kPollFallback = std::chrono::milliseconds(1);
// A refused read has often been started by the attempt, and is soon there.
constexpr int64_t kMinDelayUs = 200;
constexpr int64_t kMaxDelayUs = 25'000;

}  // namespace

bool UffdWatch::start(const FaultHandler& handler) {
  handler_ = &handler;
  return reactor_.watch(session_, Reactor::Role::uffd, handler.fd(), EPOLLIN);
}

void UffdWatch::stop() {
  if (handler_) reactor_.unwatch(handler_->fd());
}

// With few cores, a fault that wakes a demand thread takes the core of a worker or of the guest. A
// worker between installs finds the fault sooner and cheaper by polling, so the uffd is left to it;
// except for huge pages, each of which takes as long to install as ten polls.
//
// The scheduler may not run the worker, so it is trusted only for a moment at a time. (Faults that
// it has read already, microseconds before it lost its core, wait for it to resume.) Test: "a guest
// whose worker does not run is served all the same".
void UffdWatch::resume() {
  if (workers_.load() == 0 || reactor_.has_spare_core() ||
      handler_->memory().page_size() >= kHugePage) {
    rearm();
  } else {
    schedule(poll_fallback_, kPollFallback);
  }
}

// Threads that saw this worker install have left the uffd to it.
void UffdWatch::end_installs() {
  if (workers_.fetch_sub(1) == 1) rearm();
}

bool UffdWatch::begin_blocking() {
  const unsigned others = blocking_.fetch_add(1, std::memory_order_relaxed);
  if (others >= kMaxBlocking || !reactor_.begin_blocking(session_, device_, others == 0)) {
    blocking_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  return true;
}

void UffdWatch::admit_others() {
  rearm();
  if (handler_->has_waiting()) serve_again(std::chrono::nanoseconds(0));
  if (handler_->holds_faults()) serve_held();
}

void UffdWatch::end_blocking() {
  reactor_.end_blocking(device_);
  blocking_.fetch_sub(1, std::memory_order_relaxed);
}

void UffdWatch::serve_when_free() {
  const int64_t last = delay_us_.load(std::memory_order_relaxed);
  const int64_t delay = std::clamp(2 * last, kMinDelayUs, kMaxDelayUs);
  delay_us_.store(delay, std::memory_order_relaxed);
  serve_again(std::chrono::microseconds(delay));
}

void UffdWatch::schedule(Timer& timer, std::chrono::nanoseconds delay) {
  // Otherwise each call with pending faults would add another chain of timers.
  if (timer.pending.exchange(true, std::memory_order_relaxed)) return;
  reactor_.after(delay, session_, timer.role);
}

void UffdWatch::fired(Reactor::Role role) {
  for (Timer* timer : {&again_, &held_, &poll_fallback_}) {
    if (timer->role == role) timer->pending.store(false, std::memory_order_relaxed);
  }
}

}  // namespace reap
