// A mapping of a file through which the page cache is looked at, and read without waiting.
#pragma once

#include <sys/stat.h>
#include <sys/statfs.h>

#include <cstdint>

#include "base/posix.h"

namespace reap {

// True if cachestat(2) is reliable on this file system. On overlayfs it inspects an inode without
// pages, unlike mincore(2) and reads.
bool has_cachestat(const struct statfs& file_system);

// Number of pages of the range that are in the page cache or being read into it, or a negative
// errno: ENOSYS before Linux 6.5; EPERM on newer kernels for a file that the process neither owns
// nor may write. Call it only if has_cachestat() is true.
int64_t cached_pages(int fd, uint64_t first_page, uint64_t pages);

// True if the kernel reports residency to this process. It does for a file that the process owns or
// may write (mincore(2), since 5.2), so that nobody can observe what others read.
bool may_see_cache(int fd, const struct stat& status);

class CacheView {
 public:
  // Returns 0 or a negative errno: ENODEV for a file that is read past the page cache (FUSE with
  // direct_io).
  int map(int fd, uint64_t bytes);
  explicit operator bool() const { return static_cast<bool>(view_); }
  const uint8_t* data() const { return view_.data(); }

  // Sets the lowest bit of a byte for each page in the page cache; pages that are being read are
  // not. Returns 0 or a negative errno.
  int find_cached(uint64_t first_page, uint64_t pages, uint8_t* is_cached) const;
  // True if all pages of a range of the file are in the page cache.
  bool has(uint64_t offset, uint64_t length) const;
  // Copies out of the page cache. Returns false if bytes are missing, or the file was truncated.
  bool copy(uint64_t offset, void* buffer, uint64_t length) const;

 private:
  Mapping view_;
};

}  // namespace reap
