// Locality of past faults: how much to read around a page that is missing from the page cache, and
// how far to install ahead of a guest that touches its memory in order.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/page.h"
#include "base/page_bitmap.h"

namespace reap {

// Read-ahead of a file's device, in bytes; the kernel's default if sysfs has no such device (btrfs,
// overlayfs, a container without sysfs).
uint64_t device_read_ahead(dev_t device);

// Reads around misses, as the kernel does for a mapping (do_sync_mmap_readahead()) but not for
// pread(2) of one page. The window is aligned, and as long as the device's read-ahead, until much
// more has been read than was used. Each window is read once.
class ReadAround {
 public:
  ReadAround(dev_t device, uint64_t file_bytes)
      : device_(device), asked_for_((file_bytes + kPage - 1) / kPage) {}

  struct Window {
    uint64_t offset;
    uint64_t length;  // 0: only the page
  };
  // Window for a file offset that missed.
  Window on_miss(uint64_t offset);
  // Reports a fault that was answered from the page cache.
  void on_hit();

 private:
  const dev_t device_;
  PageBitmap asked_for_;             // first pages of requested windows
  std::atomic<uint64_t> length_{0};  // 0: not determined yet
  std::atomic<int64_t> unused_{0};   // bytes read around, minus `length_` per hit
};

// Runs of faults on consecutive pages: a guest that copies or scans, a VMM that writes a snapshot.
// Several, since a guest has several vCPUs. Present pages neither end a run nor count.
class FaultRuns {
 public:
  static constexpr uint64_t kMinFaults = 16;
  static constexpr uint64_t kMaxAhead = 128 << 10;

  // Notes a fault, and returns the number of bytes to install after its page: one page per fault of
  // its run. `is_present(begin, end)` tells whether no page of that range is missing.
  template <typename IsPresent>
  uint64_t on_fault(uint64_t offset, uint64_t page_size, const IsPresent& is_present) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Run& run : runs_) {
      if (run.faults == 0 || offset < run.end || offset - run.end > kMaxGap) continue;
      if (!is_present(run.end, offset)) continue;
      run.end = offset + page_size;
      ++run.faults;
      return run.faults < kMinFaults ? 0 : std::min(run.faults * page_size, kMaxAhead);
    }
    runs_[oldest_++ % runs_.size()] = {offset + page_size, 1};
    return 0;
  }

 private:
  static constexpr uint64_t kMaxGap = 2 << 20;
  struct Run {
    uint64_t end = 0;
    uint64_t faults = 0;
  };
  std::mutex mutex_;
  std::array<Run, 4> runs_;
  size_t oldest_ = 0;
};

}  // namespace reap
