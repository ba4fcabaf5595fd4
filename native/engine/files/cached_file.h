// A file as the page cache holds it: which pages are cached, and bringing in others.
#pragma once

#include <cstdint>
#include <string>

#include "base/posix.h"
#include "files/cache_view.h"

namespace reap {

class CachedFile {
 public:
  // Returns 0 or a negative errno; -EINVAL if it is not a regular file.
  int open(const std::string& path);
  // The system call that a failed open() failed in.
  const char* failed_syscall() const { return failed_in_; }
  uint64_t pages() const { return pages_; }
  uint64_t bytes() const { return bytes_; }
  // True if the file has holes.
  bool is_sparse() const { return sparse_; }

  // True if the kernel reports residency to this process: see may_see_cache().
  bool is_visible() const { return visible_; }

  // Number of pages of the range in the page cache, exact if the file is visible. Otherwise each
  // page is probed with a non-blocking read, which starts to bring in a missing page.
  uint64_t count(uint64_t first_page, uint64_t pages) const;
  // Sets the lowest bit of a byte for each cached page. Returns 0 or a negative errno. Only for a
  // visible file.
  int map(uint64_t first_page, uint64_t pages, uint8_t* is_cached) const;

  // Reads a whole range. Returns 0 or a negative errno; -ENODATA if the file ends before.
  int read(uint64_t offset, void* buffer, uint64_t length) const;

  // A mapping of the file that is never touched. Only for a visible file.
  const void* view() const { return view_.data(); }

  // Requests readahead of these pages; blocks at most until the device's queue has room.
  void will_need(uint64_t first_page, uint64_t pages) const;
  // Waits until all pages are cached, and reads those that the kernel skipped. Returns 0 or a
  // negative errno.
  int wait_for(uint64_t first_page, uint64_t pages) const;

  // Writes the file back and drops its pages. Pages that a process maps or that are under I/O stay,
  // as do all pages of a tmpfs. Returns 0 or a negative errno.
  int evict() const;

 private:
  // The part of a range that lies within the file.
  uint64_t within(uint64_t first_page, uint64_t pages) const;
  bool has(uint64_t page) const;
  void advise(uint64_t first_page, uint64_t pages) const;
  int wait_for(uint64_t page) const;

  UniqueFd fd_;
  CacheView view_;
  uint64_t bytes_ = 0;
  uint64_t pages_ = 0;
  bool visible_ = false;
  bool has_cachestat_ = false;
  bool sparse_ = false;
  bool in_memory_ = false;  // on tmpfs
  const char* failed_in_ = "open";
};

}  // namespace reap
