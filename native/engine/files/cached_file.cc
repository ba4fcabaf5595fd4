#include "files/cached_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "base/page.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

// cachestat(2) has been there since 6.5; the headers of many systems are older. Its number is the
// same on every architecture.
constexpr long kCachestat = 451;
struct CachestatRange {
  uint64_t offset;
  uint64_t length;
};
struct Cachestat {
  uint64_t cached;
  uint64_t dirty;
  uint64_t writeback;
  uint64_t evicted;
  uint64_t recently_evicted;
};

constexpr uint64_t kMappedOut = 512;  // pages that mincore() is asked about at a time
// Of one wish the kernel takes as many bytes as the device's read-ahead or its largest request has,
// whichever is more, and drops the rest without a word. This much it takes from any that is not
// set lower.
constexpr uint64_t kTakenWhole = (128 << 10) / kPage;

// Whether this process may write to an open file. Before faccessat2(2), 5.8, only a path can be
// asked about.
bool may_write(int fd, const std::string& path) {
  if (::faccessat(fd, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) == 0) return true;
  return errno == EINVAL && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
}

// mincore() answers "all there" instead of refusing, so the kernel's question is asked first. Root
// has the right by what it may do to any file of its user namespace, and a read-only file system
// takes only the write away.
bool may_see(int fd, const std::string& path, const struct stat& status) {
  return status.st_uid == ::geteuid() || may_write(fd, path) ||
         (errno == EROFS && ::geteuid() == 0);
}

}  // namespace

bool has_cachestat(const struct statfs& file_system) {
  return file_system.f_type != OVERLAYFS_SUPER_MAGIC && !REAP_HOOK_SAYS(lacks_cachestat);
}

int64_t cached_pages(int fd, uint64_t first_page, uint64_t pages) {
  // A length of 0 would mean: up to the end.
  CachestatRange range{first_page * kPage, pages * kPage};
  Cachestat found{};
  if (::syscall(kCachestat, fd, &range, &found, 0) != 0) return -errno;
  return static_cast<int64_t>(found.cached);
}

int CachedFile::open(const std::string& path) {
  // Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
  fd_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd_) return -errno;
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return -errno;
  if (!S_ISREG(status.st_mode)) return -EINVAL;
  bytes_ = static_cast<uint64_t>(status.st_size);
  pages_ = (bytes_ + kPage - 1) / kPage;
  // st_blocks counts in 512 bytes whatever the block size (stat(2)).
  sparse_ = static_cast<uint64_t>(status.st_blocks) * 512 < bytes_;
  struct statfs file_system {};
  if (::fstatfs(fd_.get(), &file_system) == 0) in_memory_ = file_system.f_type == TMPFS_MAGIC;
  // Reads through this descriptor are of single pages; read-ahead for them would bring in megabytes
  // that nobody asked for.
  ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_RANDOM);
  visible_ = may_see(fd_.get(), path, status) && !REAP_HOOK_SAYS(hides_residency);
  has_cachestat_ =
      visible_ && reap::has_cachestat(file_system) && cached_pages(fd_.get(), 0, 1) >= 0;
  return map_view();
}

int CachedFile::map_view() {
  if (!visible_ || bytes_ == 0) return 0;
  void* data = ::mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, fd_.get(), 0);
  if (data == MAP_FAILED) return -errno;
  view_ = Mapping::adopt(data, bytes_);
  // A child would be found to map the file (mappings_of()), as if it were the VMM that it is about
  // to become.
  ::madvise(data, bytes_, MADV_DONTFORK);
  return 0;
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
  uint8_t is_there[kMappedOut];
  for (uint64_t page = first_page; page < end; page += kMappedOut) {
    const uint64_t part = std::min(kMappedOut, end - page);
    if (map(page, part, is_there) != 0) return found;
    for (uint64_t i = 0; i < part; ++i) found += is_there[i] & 1;
  }
  return found;
}

bool CachedFile::has(uint64_t page) const {
  if (in_memory_) return true;
  uint8_t byte;
  iovec part{&byte, 1};
  return ::preadv2(fd_.get(), &part, 1, static_cast<off_t>(page * kPage), RWF_NOWAIT) == 1;
}

int CachedFile::map(uint64_t first_page, uint64_t pages, uint8_t* is_there) const {
  pages = within(first_page, pages);
  if (pages == 0) return 0;
  if (::mincore(view_.data() + first_page * kPage, pages * kPage, is_there) != 0) return -errno;
  if (REAP_HOOK_SAYS(reads_are_unfinished)) std::fill_n(is_there, pages, uint8_t{0});
  return 0;
}

void CachedFile::advise(uint64_t first_page, uint64_t pages) const {
  if (REAP_HOOK_SAYS(ignores_wishes)) return;
  ::posix_fadvise(fd_.get(), static_cast<off_t>(first_page * kPage),
                  static_cast<off_t>(pages * kPage), POSIX_FADV_WILLNEED);
}

void CachedFile::will_need(uint64_t first_page, uint64_t pages) const {
  pages = within(first_page, pages);
  if (pages == 0) return;
  if (has_cachestat_ || pages <= kTakenWhole) {
    advise(first_page, pages);
    // It counts those on their way too.
    if (pages <= kTakenWhole || count(first_page, pages) >= pages) return;
  }
  for (uint64_t done = 0; done < pages; done += kTakenWhole) {
    advise(first_page + done, std::min(kTakenWhole, pages - done));
  }
}

int CachedFile::wait_for(uint64_t first_page, uint64_t pages) const {
  const uint64_t end = first_page + within(first_page, pages);
  uint8_t is_there[kMappedOut];
  for (uint64_t page = first_page; page < end; page += kMappedOut) {
    const uint64_t part = std::min(kMappedOut, end - page);
    // A page alone is read as fast as it is asked about.
    const bool is_mapped_out = visible_ && part > 1 && map(page, part, is_there) == 0;
    for (uint64_t i = 0; i < part; ++i) {
      if (is_mapped_out && (is_there[i] & 1)) continue;
      if (const int error = wait_for(page + i)) return error;
    }
  }
  return 0;
}

int CachedFile::wait_for(uint64_t page) const {
  uint8_t byte;
  for (;;) {
    const ssize_t got = ::pread(fd_.get(), &byte, 1, static_cast<off_t>(page * kPage));
    if (got >= 0) return 0;  // 0: the file was cut, and there is nothing to wait for
    if (errno != EINTR) return -errno;
  }
}

int CachedFile::evict() const {
  // Only clean pages can be dropped.
  if (::fdatasync(fd_.get()) != 0 && errno != EROFS && errno != EINVAL) return -errno;
  return -::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
}

}  // namespace reap
