// Counters and trace of one restore. Shared with JavaScript, so they outlive the session.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <vector>

#include "base/named_enum.h"
#include "base/page_bitmap.h"

namespace reap {

#define REAP_COUNTERS(X)                                                                    \
  X(faults, "faults")                  /* messages served */                                \
  X(late_faults, "lateFaults")         /* on pages that the prefetch had yet to install */  \
  X(residual_faults, "residualFaults") /* on pages that the prefetch does not install */    \
  X(installed, "installed")            /* pages with bytes: by fault, ahead, or prefetch */ \
  X(zero, "zero")                      /* pages installed as zeros without reading */       \
  X(prefetched, "prefetched")          /* of both, those installed before a touch */        \
  X(ahead, "installedAhead")           /* of both, those ahead of a run of faults */        \
  X(present, "present")                /* installs on a present page (EEXIST) */            \
  X(deferred, "deferred")              /* installs deferred by an unread REMOVE (EAGAIN) */ \
  X(discarded, "discarded")            /* installs without memory or VMM (ENOENT, ESRCH) */ \
  X(removed, "removed")                /* pages that the guest gave back */                 \
  X(bytes_read, "bytesRead")           /* from the memory file and the working-set file */
REAP_NAMED_ENUM(Counter, kCounterNames, REAP_COUNTERS)

class Counters {
 public:
  void add(Counter counter, uint64_t n = 1) {
    values_[static_cast<size_t>(counter)].fetch_add(n, std::memory_order_relaxed);
  }
  uint64_t get(Counter counter) const {
    return values_[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<uint64_t>, std::size(kCounterNames)> values_{};
};

// First touches in the order of their faults; each page once.
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
    constexpr uint64_t kMaxTime = UINT32_MAX;
    trace_->touches.push_back({static_cast<uint32_t>(page),
                               static_cast<uint32_t>(time_us < kMaxTime ? time_us : kMaxTime)});
  }
  // Ends the recording; the trace is final after that. May be called repeatedly.
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
