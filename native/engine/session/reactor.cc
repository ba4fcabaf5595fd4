#include "session/reactor.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iterator>
#include <utility>

#include "base/cores.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

// Threads that are always there, and those that wait for disks on behalf of faults: further ones
// are started in their place, since a disk may hang. They only sleep.
constexpr unsigned kThreads = 4;
constexpr unsigned kMaxBlocking = 96;
constexpr unsigned kMaxBlockingPerDevice = 32;
// Of a device, for a second thread of one session.
constexpr unsigned kMaxSecond = 8;
// Time without work after which a thread too many ends, and the others return their memory.
constexpr int kIdleMs = 1000;
constexpr auto kSpin = std::chrono::microseconds(50);
// epoll data: a session's id and role, or one of the reactor's own descriptors (id 0).
constexpr unsigned kRoleBits = 8;
constexpr uint64_t kTimerEvent = 1;
constexpr uint64_t kStopEvent = 2;

bool control(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
  epoll_event event{events, {}};
  event.data.u64 = data;
  return ::epoll_ctl(epoll, operation, fd, &event) == 0;
}

uint64_t event_data(uint64_t session, Reactor::Role role) {
  return session << kRoleBits | static_cast<uint64_t>(role);
}

}  // namespace

Reactor::Reactor() : cores_(usable_cores()) {}

std::unique_ptr<Reactor> Reactor::create(int* err) {
  std::unique_ptr<Reactor> reactor(new Reactor());
  reactor->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  reactor->timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  reactor->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const int epoll = reactor->epoll_.get();
  if (!reactor->epoll_ || !reactor->timer_ || !reactor->stop_ ||
      !control(epoll, EPOLL_CTL_ADD, reactor->stop_.get(), EPOLLIN, kStopEvent) ||
      !control(epoll, EPOLL_CTL_ADD, reactor->timer_.get(), EPOLLIN | EPOLLONESHOT, kTimerEvent)) {
    *err = -errno;
    return nullptr;
  }
  return reactor;
}

int Reactor::start(const ThreadGroup& threads, Dispatch dispatch,
                   std::function<unsigned()> busy_workers) {
  threads_ = threads;
  dispatch_ = std::move(dispatch);
  busy_workers_ = std::move(busy_workers);
  const std::lock_guard<std::mutex> lock(blocking_mutex_);
  for (unsigned i = 0; i < kThreads; ++i) {
    if (const int error = start_thread()) return error;
  }
  return 0;
}

// Returns 0 or a negative errno. blocking_mutex_ is held.
int Reactor::start_thread() {
  const unsigned index = running_;
  const int error = threads_.start([this, index] { work(index); });
  if (error == 0) ++running_;
  return error;
}

// True if there are enough threads without the caller's.
bool Reactor::may_end() {
  const std::lock_guard<std::mutex> lock(blocking_mutex_);
  if (running_ - blocking_ <= kThreads) return false;
  --running_;
  return true;
}

void Reactor::stop() {
  const uint64_t one = 1;
  static_cast<void>(!::write(stop_.get(), &one, sizeof one));
}

bool Reactor::watch(uint64_t session, Role role, int fd, uint32_t events) {
  return control(epoll_.get(), EPOLL_CTL_ADD, fd, events | EPOLLONESHOT, event_data(session, role));
}

void Reactor::rearm(uint64_t session, Role role, int fd, uint32_t events) {
  // ENOENT if the session has ended and removed the descriptor.
  control(epoll_.get(), EPOLL_CTL_MOD, fd, events | EPOLLONESHOT, event_data(session, role));
}

void Reactor::unwatch(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Reactor::after(std::chrono::nanoseconds delay, uint64_t session, Role role) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto timer = timers_.emplace(Clock::now() + delay, Timer{session, role});
  if (timer == timers_.begin()) arm_timer();
}

void Reactor::forget(uint64_t session) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto timer = timers_.begin(); timer != timers_.end();) {
    timer = timer->second.session == session ? timers_.erase(timer) : std::next(timer);
  }
}

size_t Reactor::timer_count() {
  std::lock_guard<std::mutex> lock(mutex_);
  return timers_.size();
}

// Sets the timer to the first entry of timers_. mutex_ is held.
void Reactor::arm_timer() {
  itimerspec when{};
  if (!timers_.empty()) {
    // steady_clock is CLOCK_MONOTONIC. A time of 0 would disarm the timer; a past one fires at
    // once.
    const auto first = std::max<int64_t>(1, timers_.begin()->first.time_since_epoch().count());
    when.it_value.tv_sec = first / 1000000000;
    when.it_value.tv_nsec = first % 1000000000;
  }
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

bool Reactor::begin_blocking(uint64_t session, uint64_t device, bool is_first) {
  const std::lock_guard<std::mutex> lock(blocking_mutex_);
  Device& asked = devices_[device];
  if (asked.blocking >= (is_first ? kMaxBlockingPerDevice : kMaxSecond) ||
      blocking_ >= kMaxBlocking || (running_ <= blocking_ + 1 && start_thread() != 0)) {
    asked.refused.insert(session);
    return false;
  }
  ++asked.blocking;
  ++blocking_;
  return true;
}

void Reactor::end_blocking(uint64_t device) {
  std::set<uint64_t> refused;
  {
    const std::lock_guard<std::mutex> lock(blocking_mutex_);
    --blocking_;
    const auto found = devices_.find(device);
    refused.swap(found->second.refused);
    if (--found->second.blocking == 0) devices_.erase(found);
  }
  for (const uint64_t session : refused) {
    after(std::chrono::nanoseconds(0), session, Role::disk_is_free);
  }
}

void Reactor::work(unsigned index) {
  char name[16];
  std::snprintf(name, sizeof name, "reap-demand-%u", index);
  pthread_setname_np(pthread_self(), name);
  ServeBuffers buffers;
  bool is_idle = true;  // has returned its memory
  for (;;) {
    epoll_event event{};
    const bool waits = is_idle && running_ <= kThreads;
    const int got = ::epoll_wait(epoll_.get(), &event, 1, waits ? -1 : kIdleMs);
    if (got == 0 && may_end()) return;
    if (got == 0 && !is_idle) {
      buffers.pages.release_pages();
      is_idle = true;
    }
    if (got <= 0) continue;  // EINTR
    is_idle = false;
    const uint64_t data = event.data.u64;
    if (data == kStopEvent) return;
    if (data == kTimerEvent) {
      on_timer(buffers);
    } else {
      dispatch_(data >> kRoleBits, static_cast<Role>(data & ((1 << kRoleBits) - 1)), buffers);
    }
  }
}

// Handles one due timer and leaves the next one to another thread.
void Reactor::on_timer(ServeBuffers& buffers) {
  Timer due{0, Role::serve_again};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!timers_.empty() && timers_.begin()->first <= Clock::now()) {
      due = timers_.begin()->second;
      timers_.erase(timers_.begin());
    }
    arm_timer();
    control(epoll_.get(), EPOLL_CTL_MOD, timer_.get(), EPOLLIN | EPOLLONESHOT, kTimerEvent);
  }
  if (due.session != 0) dispatch_(due.session, due.role, buffers);
}

bool Reactor::has_spare_core() const {
  if (REAP_HOOK_SAYS(cores_are_busy)) return false;
  // One core is reserved for the guest.
  return spinning_.load(std::memory_order_relaxed) + busy_workers_() + 1 < cores_;
}

Reactor::Spin::Spin(Reactor& reactor) : reactor_(reactor) {
  // A spinning thread must not take the core that the guest or a fetch needs.
  if (reactor_.has_spare_core() && reactor_.spin_pause_.is_over(Clock::now())) {
    duration_ = kSpin;
  }
  reactor_.spinning_.fetch_add(1, std::memory_order_relaxed);
}

void Reactor::Spin::end(bool lost_core) {
  if (lost_core) {
    reactor_.spin_pause_.lost_core(Clock::now());
  } else if (duration_.count() > 0) {
    reactor_.spin_pause_.kept_core();
  }
}

Reactor::Spin::~Spin() { reactor_.spinning_.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace reap
