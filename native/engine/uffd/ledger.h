// What one restore counted and recorded. Shared with JavaScript, so it outlives the session.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/page_bitmap.h"

namespace reap {

// The order is part of the seam: src/binding/addon.ts names these by index.
enum class Counter : size_t {
  faults,           // fault messages served
  late_faults,      // on pages of the working set that the prefetch had not brought yet
  residual_faults,  // on pages that the prefetch does not bring
  installed,        // pages with bytes, by fault, ahead of one, or by prefetch
  zero,             // pages installed as zeros without reading
  prefetched,       // of both, those that came before the guest asked
  ahead,            // of both, those installed ahead of a run of faults
  present,          // installs that found the page there (EEXIST)
  deferred,         // installs put off because of an unread REMOVE (EAGAIN)
  discarded,        // installs that found no registered memory or no VMM (ENOENT, ESRCH)
  removed,          // pages that the guest gave back
  bytes_read,       // from the memory file and the working-set file
  kCount,
};

class Ledger {
 public:
  void add(Counter counter, uint64_t n = 1) {
    counters_[static_cast<size_t>(counter)].fetch_add(n, std::memory_order_relaxed);
  }
  uint64_t get(Counter counter) const {
    return counters_[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, static_cast<size_t>(Counter::kCount)> counters_{};
};

// First touches in the order in which they were asked for; no page twice.
class TraceRecorder {
 public:
  struct Touch {
    uint32_t page;  // in units of the guest's page size
    uint32_t time_us;
  };
  struct Trace {
    uint64_t page_size = 0;
    uint64_t memory_bytes = 0;
    std::vector<Touch> touches;
  };

  void start(uint64_t page_size, uint64_t memory_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    trace_->page_size = page_size;
    trace_->memory_bytes = memory_bytes;
    seen_ = PageBitmap(memory_bytes / page_size);
    active_.store(static_cast<bool>(seen_), std::memory_order_relaxed);
  }
  bool is_active() const { return active_.load(std::memory_order_relaxed); }
  void note(uint64_t page, uint64_t time_us) {
    if (!active_.load(std::memory_order_relaxed)) return;
    std::lock_guard<std::mutex> lock(mutex_);
    if (!active_.load(std::memory_order_relaxed) || !seen_.set(page)) return;
    constexpr uint64_t kLongest = UINT32_MAX;
    trace_->touches.push_back({static_cast<uint32_t>(page),
                               static_cast<uint32_t>(time_us < kLongest ? time_us : kLongest)});
  }
  // Ends the recording; the trace does not change from then on. May be called again.
  std::shared_ptr<const Trace> take() {
    std::lock_guard<std::mutex> lock(mutex_);
    active_.store(false, std::memory_order_relaxed);
    return trace_;
  }

 private:
  std::mutex mutex_;
  std::atomic<bool> active_{false};
  PageBitmap seen_;
  const std::shared_ptr<Trace> trace_ = std::make_shared<Trace>();
};

}  // namespace reap
