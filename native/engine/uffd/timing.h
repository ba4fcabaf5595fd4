// Times of one restore: its steps, how long its faults waited, and on request every span.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <vector>

#include "base/named_enum.h"

namespace reap {

#define REAP_SESSION_STEPS(X)                                                  \
  X(listening, "listening")                                                    \
  X(accepted, "accepted")          /* the VMM has connected */                 \
  X(connected, "connected")        /* end of the handshake */                  \
  X(first_fetch, "firstFetch")     /* begin of the prefetch's first read */    \
  X(first_install, "firstInstall") /* by the prefetch */                       \
  X(first_fault, "firstFault")     /* its message was read */                  \
  X(prefetched, "prefetched")      /* end of the prefetch, whatever its end */ \
  X(ready, "ready")                /* mark of the application */               \
  X(closed, "closed")
REAP_NAMED_ENUM(SessionStep, kSessionSteps, REAP_SESSION_STEPS)

// Times at which a session reached its steps; the first time counts. steady_clock is
// CLOCK_MONOTONIC.
class SessionSteps {
 public:
  using Clock = std::chrono::steady_clock;

  void reach(SessionStep step) {
    if (!is_reached(step)) reach(step, Clock::now());
  }
  void reach(SessionStep step, Clock::time_point at) {
    int64_t none = 0;
    at_[static_cast<size_t>(step)].compare_exchange_strong(none, at.time_since_epoch().count(),
                                                           std::memory_order_relaxed);
  }
  bool is_reached(SessionStep step) const { return nanoseconds(step) != 0; }
  // 0: not reached, or later than the end, as by a thread that was still at work.
  int64_t nanoseconds(SessionStep step) const {
    const int64_t at = value(step);
    const int64_t closed = value(SessionStep::closed);
    return closed != 0 && at > closed ? 0 : at;
  }

 private:
  int64_t value(SessionStep step) const {
    return at_[static_cast<size_t>(step)].load(std::memory_order_relaxed);
  }

  std::array<std::atomic<int64_t>, std::size(kSessionSteps)> at_{};
};

#define REAP_FAULT_CLASSES(X)                                                \
  X(on_demand, "on-demand") /* in a session without a prefetch */            \
  X(late, "late")           /* on a page that the prefetch had to install */ \
  X(residual, "residual")   /* on a page that it does not install */
REAP_NAMED_ENUM(FaultClass, kFaultClasses, REAP_FAULT_CLASSES)

#define REAP_SPAN_KINDS(X)                                 \
  X(fetch, "fetch")     /* a read of the prefetch */       \
  X(install, "install") /* installs of what was fetched */ \
  X(fault, "fault")     /* from its message to its wake */ \
  X(removal, "remove")  /* of pages that the guest gave back */
REAP_NAMED_ENUM(SpanKind, kSpanKinds, REAP_SPAN_KINDS)

// All that a session did, if enabled: the first kMax spans, and the number of later ones.
class Timeline {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kMax = 1 << 16;  // 3.5 MiB

  struct Span {
    SpanKind kind;
    Clock::time_point from;
    Clock::time_point to;
    uint64_t offset = 0;  // in the memory file; of a fault or removal
    uint64_t bytes = 0;
    FaultClass fault = FaultClass::on_demand;
    bool waited = false;  // for the disk
    uint32_t thread = 0;
  };

  // To be called before the first span.
  void enable();
  bool is_enabled() const { return enabled_.load(std::memory_order_relaxed); }
  void add(const Span& span);
  std::vector<Span> spans(uint64_t* missing) const;

 private:
  std::atomic<bool> enabled_{false};
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Span> spans_;   // never moved: see spans()
  uint64_t missing_ = 0;
};

// Waits of faults, from the read of their message to the wake of their thread, and the time during
// which at least one waited. Not seen: the time until the message is read.
class FaultWaits {
 public:
  using Clock = std::chrono::steady_clock;
  // Buckets of powers of two with linear halves: up to 1, 1.5, 2, 3, 4, 6 … µs, in ns of 1,024 per
  // µs. The last one has no limit.
  static constexpr size_t kBuckets = 53;
  static constexpr size_t kSlowest = 8;
  // Faults beyond it, of a VMM with as many threads, are not timed.
  static constexpr size_t kMaxOpen = 1024;

  struct Distribution {
    uint64_t count = 0;
    uint64_t total_ns = 0;
    uint64_t max_ns = 0;
    std::array<uint64_t, kBuckets> buckets{};
  };
  struct SlowFault {
    uint64_t offset = 0;
    uint64_t wait_ns = 0;
    FaultClass fault = FaultClass::on_demand;
  };
  struct Report {
    std::array<Distribution, std::size(kFaultClasses)> classes;
    std::vector<SlowFault> slowest;  // longest wait first; also those that still wait
    uint64_t stalled_ns = 0;
  };

  explicit FaultWaits(Timeline& timeline) : timeline_(timeline) {}

  // The message of a fault on the page at `offset` was read.
  void begin(uint64_t offset, FaultClass fault, Clock::time_point at);
  // The threads that wait for [offset, offset + length) were woken.
  void end(uint64_t offset, uint64_t length) {
    if (open_count_.load(std::memory_order_relaxed) > 0) end_open(offset, length);
  }
  // The guest is gone: it waits no longer. A fault that was answered shortly before may not have
  // ended yet. Test: "a fault that is answered as the session ends is counted". Returns the time,
  // which is that of the first call.
  Clock::time_point close();
  Report report() const;

  static size_t bucket_of(uint64_t wait_ns);
  // The limit of a bucket, except of the last.
  static uint64_t limit_ns(size_t bucket);

 private:
  struct Open {
    uint64_t offset;
    FaultClass fault;
    Clock::time_point since;
  };
  bool is_closed() const { return closed_at_ != Clock::time_point::max(); }
  void end_open(uint64_t offset, uint64_t length);
  void count(const Open& fault, Clock::time_point at);

  Timeline& timeline_;
  std::atomic<size_t> open_count_{0};  // set under mutex_
  mutable std::mutex mutex_;           // guards what follows
  std::vector<Open> open_;
  Clock::time_point stalled_since_{};
  Clock::time_point stalled_until_{};  // the last time at which no fault was open any more
  Clock::time_point closed_at_ = Clock::time_point::max();
  Report report_;
};

}  // namespace reap
