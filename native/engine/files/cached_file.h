// A file as the page cache has it: which of its pages are there, and bringing others in.
#pragma once

#include <sys/statfs.h>

#include <cstdint>
#include <string>

#include "base/posix.h"

namespace reap {

// Whether cachestat(2) tells the truth there. On overlayfs it looks at an inode that has no pages,
// as mincore(2) and reads do not.
bool has_cachestat(const struct statfs& file_system);

// Pages of the range that are in the page cache or being read into it, or a negative errno: ENOSYS
// before Linux 6.5, and EPERM of newer kernels for a file that the process neither owns nor may
// write.
// Not to be asked where has_cachestat() is false.
int64_t cached_pages(int fd, uint64_t first_page, uint64_t pages);

class CachedFile {
 public:
  // 0 or a negative errno; -EINVAL for what is no regular file.
  int open(const std::string& path);
  uint64_t pages() const { return pages_; }
  uint64_t bytes() const { return bytes_; }
  // Whether it has holes.
  bool is_sparse() const { return sparse_; }

  // Whether the kernel tells this process which pages there are. It does for a file that the
  // process owns or may write (mincore(2), since 5.2), so that nobody learns what others read.
  bool is_visible() const { return visible_; }

  // How many pages of the range are in the page cache: exact where the file is visible. Elsewhere
  // each page is tried with a read that does not wait, which starts to bring it in where it is not.
  uint64_t count(uint64_t first_page, uint64_t pages) const;
  // Sets the lowest bit of a byte for each page that is there. 0 or a negative errno. Only for a
  // visible file.
  int map(uint64_t first_page, uint64_t pages, uint8_t* is_there) const;

  // All of a range. 0 or a negative errno; -ENODATA where the file ends before.
  int read(uint64_t offset, void* buffer, uint64_t length) const;

  // A mapping of the file that is never touched. Only of a visible file.
  const void* view() const { return view_.data(); }

  // Asks the kernel to bring these in; waits at the most for room in the device's queue.
  void will_need(uint64_t first_page, uint64_t pages) const;
  // Waits until all are there, and reads those that the kernel has passed over. 0 or a negative
  // errno.
  int wait_for(uint64_t first_page, uint64_t pages) const;

  // Writes the file back and drops its pages. Those that a process maps or that are under I/O stay,
  // as does all of a tmpfs. 0 or a negative errno.
  int evict() const;

 private:
  int map_view();
  // The part of a range that the file has.
  uint64_t within(uint64_t first_page, uint64_t pages) const;
  bool has(uint64_t page) const;
  void advise(uint64_t first_page, uint64_t pages) const;
  int wait_for(uint64_t page) const;

  UniqueFd fd_;
  Mapping view_;  // mincore() asks about mappings
  uint64_t bytes_ = 0;
  uint64_t pages_ = 0;
  bool visible_ = false;
  bool has_cachestat_ = false;
  bool sparse_ = false;
  bool in_memory_ = false;  // on tmpfs
};

}  // namespace reap
