#include "files/cached_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/page.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

constexpr uint64_t kMincorePages = 512;  // pages per mincore() call
// Of one readahead request the kernel reads at most the device's read-ahead or its maximum request
// size, whichever is larger, and silently drops the rest. It reads this much in any case, unless
// the device is set lower.
constexpr uint64_t kMinRequestPages = (128 << 10) / kPage;

}  // namespace

int CachedFile::open(const std::string& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  fd_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd_) return -errno;
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return -errno;
  if (!S_ISREG(status.st_mode)) return -EINVAL;
  bytes_ = static_cast<uint64_t>(status.st_size);
  pages_ = (bytes_ + kPage - 1) / kPage;
  // st_blocks counts units of 512 bytes whatever the block size (stat(2)).
  sparse_ = static_cast<uint64_t>(status.st_blocks) * 512 < bytes_;
  struct statfs file_system {};
  if (::fstatfs(fd_.get(), &file_system) == 0) in_memory_ = file_system.f_type == TMPFS_MAGIC;
  // Reads through this descriptor are of single pages; read-ahead would bring in megabytes that
  // nobody requested.
  ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);
  visible_ = may_see_cache(fd_.get(), status);
  has_cachestat_ =
      visible_ && reap::has_cachestat(file_system) && cached_pages(fd_.get(), 0, 1) >= 0;
  const int error = visible_ ? view_.map(fd_.get(), bytes_) : 0;
  if (error != 0) failed_in_ = "mmap";
  return error;
}

int CachedFile::read(uint64_t offset, void* buffer, uint64_t length) const {
  const int64_t done = read_whole(fd_.get(), offset, buffer, length, 0);
  if (done < 0) return static_cast<int>(done);
  return static_cast<uint64_t>(done) == length ? 0 : -ENODATA;
}

uint64_t CachedFile::within(uint64_t first_page, uint64_t pages) const {
  return first_page < pages_ ? std::min(pages, pages_ - first_page) : 0;
}

uint64_t CachedFile::count(uint64_t first_page, uint64_t pages) const {
  pages = within(first_page, pages);
  if (pages == 0) return 0;
  if (has_cachestat_) {
    const int64_t found = cached_pages(fd_.get(), first_page, pages);
    return found < 0 ? 0 : static_cast<uint64_t>(found);
  }
  uint64_t found = 0;
  const uint64_t end = first_page + pages;
  if (!visible_) {
    for (uint64_t page = first_page; page < end; ++page) found += has(page);
    return found;
  }
  uint8_t is_cached[kMincorePages];
  for (uint64_t page = first_page; page < end; page += kMincorePages) {
    const uint64_t part = std::min(kMincorePages, end - page);
    if (map(page, part, is_cached) != 0) return found;
    for (uint64_t i = 0; i < part; ++i) found += is_cached[i] & 1;
  }
  return found;
}

bool CachedFile::has(uint64_t page) const {
  if (in_memory_) return true;
  uint8_t byte;
  iovec part{&byte, 1};
  return ::preadv2(fd_.get(), &part, 1, static_cast<off_t>(page * kPage), RWF_NOWAIT) == 1;
}

int CachedFile::map(uint64_t first_page, uint64_t pages, uint8_t* is_cached) const {
  pages = within(first_page, pages);
  return pages == 0 ? 0 : view_.find_cached(first_page, pages, is_cached);
}

void CachedFile::advise(uint64_t first_page, uint64_t pages) const {
  if (REAP_HOOK_SAYS(drops_readahead)) return;
  ::posix_fadvise(fd_.get(), static_cast<off_t>(first_page * kPage),
                  static_cast<off_t>(pages * kPage), POSIX_FADV_WILLNEED);
}

void CachedFile::will_need(uint64_t first_page, uint64_t pages) const {
  pages = within(first_page, pages);
  if (pages == 0) return;
  if (has_cachestat_ || pages <= kMinRequestPages) {
    advise(first_page, pages);
    // count() includes pages that are still being read.
    if (pages <= kMinRequestPages || count(first_page, pages) >= pages) return;
  }
  for (uint64_t done = 0; done < pages; done += kMinRequestPages) {
    advise(first_page + done, std::min(kMinRequestPages, pages - done));
  }
}

int CachedFile::wait_for(uint64_t first_page, uint64_t pages) const {
  const uint64_t end = first_page + within(first_page, pages);
  uint8_t is_cached[kMincorePages];
  for (uint64_t page = first_page; page < end; page += kMincorePages) {
    const uint64_t part = std::min(kMincorePages, end - page);
    // For a single page, reading costs no more than mincore().
    const bool is_mapped = visible_ && part > 1 && map(page, part, is_cached) == 0;
    for (uint64_t i = 0; i < part; ++i) {
      if (is_mapped && (is_cached[i] & 1)) continue;
      if (const int error = wait_for(page + i)) return error;
    }
  }
  return 0;
}

int CachedFile::wait_for(uint64_t page) const {
  uint8_t byte;
  for (;;) {
    const ssize_t got = ::pread(fd_.get(), &byte, 1, static_cast<off_t>(page * kPage));
    if (got >= 0) return 0;  // 0: the file was truncated, so there is nothing to wait for
    if (errno != EINTR) return -errno;
  }
}

int CachedFile::evict() const {
  // Only clean pages can be dropped.
  if (::fdatasync(fd_.get()) != 0 && errno != EROFS && errno != EINVAL) return -errno;
  return -::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
}

}  // namespace reap
