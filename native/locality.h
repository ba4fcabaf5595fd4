// What the faults so far tell about the next ones: how much to read around a page that is not in
// the page cache, and how far to install ahead of a guest that goes through its memory in order.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

namespace reap {

// What the device of a file is set to read ahead, in bytes: the kernel's default where it does not
// tell (network file systems, overlayfs, a container without sysfs).
uint64_t device_read_ahead(dev_t device);

// Pages that are touched lie near others that are. A handler that maps the file has the kernel read
// around each miss (do_sync_mmap_readahead()), as much as the device is set to; pread(2) of a page
// reads that page. This is the same for a handler that reads: an aligned stretch of that length,
// until much more has been read than was asked for.
class ReadAround {
 public:
  explicit ReadAround(dev_t device) : device_(device) {}

  struct Stretch {
    uint64_t offset;
    uint64_t length;  // 0: only the page
  };
  // Of a file offset that was found missing.
  Stretch on_miss(uint64_t offset);
  // A fault was answered from the page cache.
  void on_hit();

 private:
  const dev_t device_;
  std::atomic<uint64_t> length_{0};  // 0: not looked up yet
  std::atomic<int64_t> unused_{0};   // bytes read around, less `length_` for each hit
};

// Runs of faults on neighbouring pages: a guest that copies or scans, a VMM that writes a snapshot.
// Several, as a guest has several vCPUs. Pages that are there already do not end one.
class Sequences {
 public:
  // How many bytes lie behind a fault in its run, with its own page. `is_there(begin, end)` tells
  // whether that stretch has no missing page.
  template <typename IsThere>
  uint64_t run_up_to(uint64_t offset, uint64_t page_size, const IsThere& is_there) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Run& run : runs_) {
      if (run.end == 0 || offset < run.end || offset - run.end > kMaxGap) continue;
      if (!is_there(run.end, offset)) continue;
      run.end = offset + page_size;
      return run.end - run.begin;
    }
    runs_[oldest_++ % runs_.size()] = {offset, offset + page_size};
    return page_size;
  }

 private:
  static constexpr uint64_t kMaxGap = 2 << 20;
  struct Run {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  std::mutex mutex_;
  std::array<Run, 4> runs_;
  size_t oldest_ = 0;
};

}  // namespace reap
