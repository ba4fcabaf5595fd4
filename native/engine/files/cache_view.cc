#include "files/cache_view.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "base/page.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

// cachestat(2) exists since Linux 6.5; the headers of many systems are older. Its number is the
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

constexpr uint64_t kPagesAtOnce = 512;

// True if this process may write to an open file. Before faccessat2(2), Linux 5.8, only a path can
// be asked about.
bool may_write(int fd) {
  if (::faccessat(fd, "", W_OK, AT_EACCESS | AT_EMPTY_PATH) == 0) return true;
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return errno == EINVAL && ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0;
}

}  // namespace

bool has_cachestat(const struct statfs& file_system) {
  return file_system.f_type != OVERLAYFS_SUPER_MAGIC && !REAP_HOOK_SAYS(lacks_cachestat);
}

int64_t cached_pages(int fd, uint64_t first_page, uint64_t pages) {
  // A length of 0 would mean up to the end of the file.
  CachestatRange range{first_page * kPage, pages * kPage};
  Cachestat found{};
  if (::syscall(kCachestat, fd, &range, &found, 0) != 0) return -errno;
  return static_cast<int64_t>(found.cached);
}

// mincore() reports "all resident" instead of failing, so the kernel's own rule is checked first.
// Root passes by its capability over any file of its user namespace; a read-only file system denies
// writes but not this.
bool may_see_cache(int fd, const struct stat& status) {
  if (REAP_HOOK_SAYS(hides_residency)) return false;
  return status.st_uid == ::geteuid() || may_write(fd) || (errno == EROFS && ::geteuid() == 0);
}

int CacheView::map(int fd, uint64_t bytes) {
  if (bytes == 0) return 0;
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return -errno;
  view_ = Mapping::adopt(data, bytes);
  // Otherwise mappings_of() would report a forked child as a mapper of the file, as if it were the
  // VMM that it is about to exec.
  ::madvise(data, bytes, MADV_DONTFORK);
  // copy() must not start to read ahead, which may wait.
  ::madvise(data, bytes, MADV_RANDOM);
  return 0;
}

int CacheView::find_cached(uint64_t first_page, uint64_t pages, uint8_t* is_cached) const {
  if (::mincore(view_.data() + first_page * kPage, pages * kPage, is_cached) != 0) return -errno;
  if (REAP_HOOK_SAYS(reads_are_unfinished)) std::fill_n(is_cached, pages, uint8_t{0});
  return 0;
}

bool CacheView::has(uint64_t offset, uint64_t length) const {
  if (!view_ || offset + length > view_.size()) return false;
  const uint64_t end = (offset + length + kPage - 1) / kPage;
  uint8_t is_cached[kPagesAtOnce];
  for (uint64_t page = offset / kPage; page < end; page += kPagesAtOnce) {
    const uint64_t part = std::min(kPagesAtOnce, end - page);
    if (find_cached(page, part, is_cached) != 0) return false;
    if (!std::all_of(is_cached, is_cached + part, [](uint8_t one) { return one & 1; })) {
      return false;
    }
  }
  return true;
}

// Not read(2): even if it finds the pages, it may first ask the server for the file's attributes.
// Nor memcpy(): a file that was truncated would raise SIGBUS. A page that is evicted in between is
// read, and waited for; that is rare.
bool CacheView::copy(uint64_t offset, void* buffer, uint64_t length) const {
  if (!has(offset, length)) return false;
  const iovec to{buffer, length};
  const iovec from{view_.data() + offset, length};
  return ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) == static_cast<ssize_t>(length);
}

}  // namespace reap
