#include "uffd/timing.h"

#include <algorithm>

namespace reap {

namespace {

constexpr unsigned kFirstShift = 10;  // the first bucket ends at 1,024 ns

uint64_t nanoseconds(std::chrono::steady_clock::duration time) {
  return static_cast<uint64_t>(
      std::max<int64_t>(0, std::chrono::duration_cast<std::chrono::nanoseconds>(time).count()));
}

// Keeps the longest waits, the longest first.
void add_slow(std::vector<FaultWaits::SlowFault>* slowest, const FaultWaits::SlowFault& fault) {
  const auto is_longer = [](const FaultWaits::SlowFault& one, const FaultWaits::SlowFault& other) {
    return one.wait_ns > other.wait_ns;
  };
  slowest->insert(std::upper_bound(slowest->begin(), slowest->end(), fault, is_longer), fault);
  if (slowest->size() > FaultWaits::kSlowest) slowest->pop_back();
}

}  // namespace

void Timeline::enable() {
  const std::lock_guard<std::mutex> lock(mutex_);
  spans_.reserve(kMax);
  enabled_.store(true, std::memory_order_relaxed);
}

void Timeline::add(const Span& span) {
  if (!is_enabled()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (spans_.size() < kMax) {
    spans_.push_back(span);
  } else {
    ++missing_;
  }
}

// Copies without the lock, since faults wait for it: spans that were added change no more, and
// enable() has reserved the memory of all of them.
std::vector<Timeline::Span> Timeline::spans(uint64_t* missing) const {
  std::unique_lock<std::mutex> lock(mutex_);
  *missing = missing_;
  const Span* const first = spans_.data();
  const size_t count = spans_.size();
  lock.unlock();
  return {first, first + count};
}

// Bucket 0 ends at 1,024 ns; buckets 2k+1 and 2k+2 end at 1.5 and 2 times 2^k of that.
size_t FaultWaits::bucket_of(uint64_t wait_ns) {
  size_t bucket = 0;
  while (bucket + 1 < kBuckets && wait_ns >= limit_ns(bucket)) ++bucket;
  return bucket;
}

uint64_t FaultWaits::limit_ns(size_t bucket) {
  const uint64_t base = uint64_t{1} << (kFirstShift + (bucket + 1) / 2);
  return bucket % 2 == 1 ? base / 2 + base / 4 : base;
}

// Threads may come here in another order than they took their times. Test: "stalled time is not
// counted again for a fault that begins late".
void FaultWaits::begin(uint64_t offset, FaultClass fault, Clock::time_point at) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed()) {
    count({offset, fault, closed_at_}, closed_at_);
    return;
  }
  if (open_.size() >= kMaxOpen) return;
  at = std::max(at, stalled_until_);
  stalled_since_ = open_.empty() ? at : std::min(stalled_since_, at);
  open_.push_back({offset, fault, at});
  open_count_.store(open_.size(), std::memory_order_relaxed);
}

void FaultWaits::end_open(uint64_t offset, uint64_t length) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (open_.empty()) return;
  // With the lock: no fault ends before its begin.
  const auto at = Clock::now();
  const auto is_ended = [&](const Open& fault) {
    if (fault.offset < offset || fault.offset - offset >= length) return false;
    count(fault, at);
    return true;
  };
  open_.erase(std::remove_if(open_.begin(), open_.end(), is_ended), open_.end());
  open_count_.store(open_.size(), std::memory_order_relaxed);
  if (!open_.empty()) return;
  report_.stalled_ns += nanoseconds(at - stalled_since_);
  stalled_until_ = at;
}

// mutex_ is held.
void FaultWaits::count(const Open& fault, Clock::time_point at) {
  const uint64_t wait = nanoseconds(at - fault.since);
  Distribution& distribution = report_.classes[static_cast<size_t>(fault.fault)];
  ++distribution.count;
  distribution.total_ns += wait;
  distribution.max_ns = std::max(distribution.max_ns, wait);
  ++distribution.buckets[bucket_of(wait)];
  add_slow(&report_.slowest, {fault.offset, wait, fault.fault});
  Timeline::Span span{SpanKind::fault, fault.since, at};
  span.offset = fault.offset;
  span.fault = fault.fault;
  timeline_.add(span);
}

FaultWaits::Clock::time_point FaultWaits::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed()) return closed_at_;
  closed_at_ = Clock::now();
  if (open_.empty()) return closed_at_;
  for (const Open& fault : open_) count(fault, closed_at_);
  report_.stalled_ns += nanoseconds(closed_at_ - stalled_since_);
  open_.clear();
  open_count_.store(0, std::memory_order_relaxed);
  return closed_at_;
}

FaultWaits::Report FaultWaits::report() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  Report report = report_;
  if (open_.empty()) return report;
  const auto now = Clock::now();
  report.stalled_ns += nanoseconds(now - stalled_since_);
  for (const Open& fault : open_) {
    add_slow(&report.slowest, {fault.offset, nanoseconds(now - fault.since), fault.fault});
  }
  return report;
}

}  // namespace reap
