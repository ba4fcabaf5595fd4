#include "session/engine.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/cores.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

// Threads that may wait for the disk on behalf of a fault at the same time.
constexpr unsigned kDemandThreads = 4;
// And for a prefetch, while its workers install: with both reading as well, enough for the queue of
// one disk.
constexpr unsigned kReaders = 2;
constexpr auto kSpin = std::chrono::microseconds(50);
// How long nobody spins after a spinning thread lost its core: about what the loss cost it.
constexpr auto kSpinPause = std::chrono::milliseconds(5);
// epoll data: a session's id and role, or one of the engine's own descriptors (id 0).
constexpr unsigned kRoleBits = 8;
constexpr uint64_t kTimerEvent = 1;
constexpr uint64_t kStopEvent = 2;

// Not asked for each fault: it reads files. Quotas and affinity are set before a process starts.
unsigned cores() {
  static const unsigned count = usable_cores();
  return count;
}

uint64_t event_data(uint64_t id, Session::Role role) {
  return id << kRoleBits | static_cast<uint64_t>(role);
}

}  // namespace

std::unique_ptr<Engine> Engine::create(Emit emit, int* err) {
  std::unique_ptr<Engine> engine(new Engine(std::move(emit)));
  engine->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  engine->timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  engine->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event on_stop{EPOLLIN, {}};
  on_stop.data.u64 = kStopEvent;
  epoll_event on_timer{EPOLLIN | EPOLLONESHOT, {}};
  on_timer.data.u64 = kTimerEvent;
  if (!engine->epoll_ || !engine->timer_ || !engine->stop_ ||
      ::epoll_ctl(engine->epoll_.get(), EPOLL_CTL_ADD, engine->stop_.get(), &on_stop) != 0 ||
      ::epoll_ctl(engine->epoll_.get(), EPOLL_CTL_ADD, engine->timer_.get(), &on_timer) != 0) {
    *err = -errno;
    return nullptr;
  }
  engine->prefetcher_ = std::make_unique<Prefetcher>(std::clamp(cores(), 2U, 4U), kReaders);
  for (unsigned i = 0; i < kDemandThreads; ++i) {
    engine->threads_.emplace_back([&engine = *engine, i] { engine.work(i); });
  }
  return engine;
}

uint64_t Engine::open(SessionOptions options, std::shared_ptr<Counters> counters,
                      std::shared_ptr<TraceRecorder> trace, Failure* failure) {
  std::shared_ptr<Session> session;
  uint64_t id;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    id = next_id_++;
    session = std::make_shared<Session>(*this, id, std::move(options), std::move(counters),
                                        std::move(trace));
    sessions_.emplace(id, session);
  }
  *failure = session->start();
  if (!*failure) return id;
  release(id);
  return 0;
}

std::shared_ptr<Session> Engine::find(uint64_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second;
}

void Engine::release(uint64_t id) {
  std::shared_ptr<Session> session;  // released after the lock: it may be the last owner
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  session = std::move(found->second);
  sessions_.erase(found);
}

void Engine::shutdown() {
  std::vector<std::shared_ptr<Session>> open;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (std::exchange(shut_down_, true)) return;
    for (auto& [id, session] : sessions_) open.push_back(session);
  }
  for (auto& session : open) session->abandon();
  open.clear();
  const uint64_t one = 1;
  if (stop_) static_cast<void>(!::write(stop_.get(), &one, sizeof one));
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  prefetcher_.reset();
  std::lock_guard<std::mutex> lock(mutex_);
  sessions_.clear();
}

bool Engine::watch(uint64_t id, Session::Role role, int fd, uint32_t events) {
  // One thread an event: the others of this session go on, and so do other sessions.
  epoll_event event{events | EPOLLONESHOT, {}};
  event.data.u64 = event_data(id, role);
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
}

void Engine::rearm(uint64_t id, Session::Role role, int fd, uint32_t events) {
  epoll_event event{events | EPOLLONESHOT, {}};
  event.data.u64 = event_data(id, role);
  // ENOENT when the session has ended meanwhile and taken it out.
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void Engine::unwatch(int fd) { ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

void Engine::after(std::chrono::nanoseconds delay, uint64_t id, Session::Role role) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto timer = timers_.emplace(Clock::now() + delay, Token{id, role});
  if (timer == timers_.begin()) arm_timer();
}

// Sets the timer to the first of timers_. mutex_ is held.
void Engine::arm_timer() {
  itimerspec when{};
  if (!timers_.empty()) {
    // steady_clock is CLOCK_MONOTONIC. A time of 0 would disarm; one in the past fires at once.
    const auto first = std::max<int64_t>(1, timers_.begin()->first.time_since_epoch().count());
    when.it_value.tv_sec = first / 1000000000;
    when.it_value.tv_nsec = first % 1000000000;
  }
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &when, nullptr);
}

bool Engine::begin_blocking() {
  if (blocking_.fetch_add(1, std::memory_order_relaxed) + 1 < kDemandThreads) return true;
  end_blocking();
  return false;
}

void Engine::work(unsigned index) {
  char name[16];
  std::snprintf(name, sizeof name, "reap-demand-%u", index);
  pthread_setname_np(pthread_self(), name);
  ServeBuffers buffers;
  for (;;) {
    epoll_event event{};
    const int got = ::epoll_wait(epoll_.get(), &event, 1, -1);
    if (got <= 0) continue;  // EINTR
    if (event.data.u64 == kStopEvent) return;
    if (event.data.u64 == kTimerEvent) {
      on_timer(buffers);
      continue;
    }
    dispatch({event.data.u64 >> kRoleBits,
              static_cast<Session::Role>(event.data.u64 & ((1 << kRoleBits) - 1))},
             buffers);
  }
}

// Takes one due timer and leaves the next to another thread.
void Engine::on_timer(ServeBuffers& buffers) {
  Token due{0, Session::Role::serve_again};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!timers_.empty() && timers_.begin()->first <= Clock::now()) {
      due = timers_.begin()->second;
      timers_.erase(timers_.begin());
    }
    arm_timer();
    epoll_event event{EPOLLIN | EPOLLONESHOT, {}};
    event.data.u64 = kTimerEvent;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, timer_.get(), &event);
  }
  if (due.id != 0) dispatch(due, buffers);
}

void Engine::dispatch(Token token, ServeBuffers& buffers) {
  if (const std::shared_ptr<Session> session = find(token.id)) {
    session->on_event(token.role, buffers);
  }
}

bool Engine::has_core_to_spare() const {
  if (REAP_HOOK_SAYS(cores_are_busy)) return false;
  // One is the guest's.
  return spinning_.load(std::memory_order_relaxed) + prefetcher_->busy_workers() + 1 < cores();
}

Engine::Spin::Spin(Engine& engine) : engine_(engine) {
  // A spinning thread may not take the core that the guest or a fetch needs.
  if (engine_.has_core_to_spare() &&
      Clock::now() >= engine_.no_spin_until_.load(std::memory_order_relaxed)) {
    duration_ = kSpin;
  }
  engine_.spinning_.fetch_add(1, std::memory_order_relaxed);
}

void Engine::Spin::lost_core() {
  engine_.no_spin_until_.store(Clock::now() + kSpinPause, std::memory_order_relaxed);
}

Engine::Spin::~Spin() { engine_.spinning_.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace reap
