#include "files/page_source.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/page.h"
#include "base/test_hooks.h"
#include "files/cached_file.h"

namespace reap {

namespace {

uint64_t nanoseconds_of(const timespec& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1000000000 + static_cast<uint64_t>(time.tv_nsec);
}

}  // namespace

FileStamp stamp_of(const struct stat& status) {
  return {status.st_dev, status.st_ino, static_cast<uint64_t>(status.st_size),
          nanoseconds_of(status.st_mtim), nanoseconds_of(status.st_ctim)};
}

bool is_settled(uint64_t changed_at, uint64_t age) {
  if (REAP_HOOK_SAYS(is_young)) return false;
  timespec clock{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &clock);
  return is_settled_at(changed_at, age, nanoseconds_of(clock));
}

bool is_settled_at(uint64_t changed_at, uint64_t age, uint64_t now) {
  constexpr uint64_t kSecond = 1000000000;
  const uint64_t then = now - age;
  return (changed_at % kSecond == 0 ? then - then % kSecond : then) > changed_at;
}

// A read lease is granted only if nobody has the file open for writing (fcntl(2)). It is released
// at once; an open for writing in between waits that long, and makes the kernel signal the holder:
// with a signal that is ignored by default, instead of SIGIO, which ends the process.
Writers writers_of(int fd) {
  if (::fcntl(fd, F_SETSIG, SIGURG) != 0) return Writers::unknown;
  if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) {
    return errno == EAGAIN ? Writers::some : Writers::unknown;
  }
  ::fcntl(fd, F_SETLEASE, F_UNLCK);
  return Writers::none;
}

FileChange change_of(const FileStamp& before, const FileStamp& after) {
  if (before == after) return FileChange::none;
  return std::equal(before.begin(), before.end() - 1, after.begin()) ? FileChange::status
                                                                     : FileChange::content;
}

int PageSource::adopt(UniqueFd fd) {
  fd_ = std::move(fd);
  if (!fd_) return -errno;
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return -errno;
  if (!S_ISREG(status.st_mode)) return -EINVAL;
  bytes_ = static_cast<uint64_t>(status.st_size);
  stamp_ = stamp_of(status);
  // st_blocks counts units of 512 bytes whatever the block size (stat(2)).
  sparse_ = static_cast<uint64_t>(status.st_blocks) * 512 < bytes_;
  struct statfs file_system {};
  if (::fstatfs(fd_.get(), &file_system) == 0) {
    in_memory_ = file_system.f_type == TMPFS_MAGIC;
    has_cachestat_ = has_cachestat(file_system);
  }
  return 0;
}

int PageSource::open(const std::string& path) {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;
  const int error = adopt(UniqueFd(::open(path.c_str(), kFlags)));
  if (error != 0) return error;
  // By now the path may name another file. Test: "a file that is replaced while it is opened is
  // read through one descriptor".
  REAP_HOOK(before_direct_open);
  direct_.reset(::open(path.c_str(), kFlags | O_DIRECT));
  struct stat direct {};
  if (direct_ && (::fstat(direct_.get(), &direct) != 0 || direct.st_dev != stamp_[0] ||
                  direct.st_ino != stamp_[1])) {
    direct_.reset();
  }
  return 0;
}

FileStamp PageSource::current_stamp() const {
  struct stat status {};
  return ::fstat(fd_.get(), &status) == 0 ? stamp_of(status) : FileStamp{};
}

PageSource::Result PageSource::read_cached(uint64_t offset, void* buffer, uint64_t length) const {
  if (REAP_HOOK_SAYS(is_cold)) return {Read::would_block};
  if (in_memory_) return read(offset, buffer, length);
  iovec part{buffer, length};
  for (;;) {
    const ssize_t got = ::preadv2(fd_.get(), &part, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    if (got == static_cast<ssize_t>(length)) return {Read::done};
    // A short read: either the cached part or the file ends here; the blocking read tells which.
    // EOPNOTSUPP: this file system does not support RWF_NOWAIT.
    if (got >= 0 || errno == EAGAIN || errno == EOPNOTSUPP) return {Read::would_block};
    if (errno != EINTR) return {Read::failed, -errno};
  }
}

namespace {

PageSource::Result read_fully(int fd, uint64_t offset, void* buffer, uint64_t length) {
  const int64_t done = read_whole(fd, offset, buffer, length);
  if (done < 0) return {PageSource::Read::failed, static_cast<int>(done)};
  const bool all = static_cast<uint64_t>(done) == length;
  return {all ? PageSource::Read::done : PageSource::Read::cut_short};
}

}  // namespace

PageSource::Result PageSource::read(uint64_t offset, void* buffer, uint64_t length) const {
  return read_fully(fd_.get(), offset, buffer, length);
}

PageSource::Result PageSource::read_streaming(uint64_t offset, void* buffer,
                                              uint64_t length) const {
  // A non-blocking read starts read-ahead all the same, so the pages would be read twice, once past
  // the page cache: ask the kernel first. If it does not report residency, accept that.
  const int64_t there =
      direct_ && has_cachestat_ ? cached_pages(fd_.get(), offset / kPage, length / kPage) : -ENOSYS;
  const bool all_there = there >= 0 && static_cast<uint64_t>(there) >= length / kPage;
  if (there < 0 || all_there) {
    const Result cached = read_cached(offset, buffer, length);
    if (cached.read != Read::would_block) return cached;
  }
  Result result{Read::failed, -EINVAL};
  // If all pages are there and a read would block, they are being read already.
  if (direct_ && !all_there) result = read_fully(direct_.get(), offset, buffer, length);
  // Some file systems open with O_DIRECT and then refuse the read.
  if (result.read == Read::failed && result.err == -EINVAL) result = read(offset, buffer, length);
  result.waited = true;
  return result;
}

bool PageSource::is_cached(uint64_t offset, uint64_t length) const {
  if (!has_cachestat_) return true;
  const int64_t there = cached_pages(fd_.get(), offset / kPage, length / kPage);
  return there < 0 || static_cast<uint64_t>(there) >= length / kPage;
}

bool PageSource::is_mappable() const {
  void* page = ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd_.get(), 0);
  if (page == MAP_FAILED) return errno != ENODEV;
  Mapping::adopt(page, kPage);
  return true;
}

void PageSource::will_need(uint64_t offset, uint64_t length) const {
  ::posix_fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(length),
                  POSIX_FADV_WILLNEED);
}

PageSource::RandomAccess::RandomAccess(const PageSource& file) : file_(file) {
  ::posix_fadvise(file_.fd_.get(), 0, 0, POSIX_FADV_RANDOM);
}

PageSource::RandomAccess::~RandomAccess() {
  ::posix_fadvise(file_.fd_.get(), 0, 0, POSIX_FADV_NORMAL);
}

uint64_t PageSource::hole_end(uint64_t offset) const {
  if (!sparse_) return offset;
  const off_t data = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  // ENXIO: no data up to the end of the file. A truncated file returns the same, so the hole is
  // trusted only up to the file's current size.
  if (data >= 0) return static_cast<uint64_t>(data);
  struct stat status {};
  if (errno != ENXIO || ::fstat(fd_.get(), &status) != 0) return offset;
  const auto size = static_cast<uint64_t>(status.st_size);
  return size > offset ? size : offset;
}

uint64_t PageSource::data_end(uint64_t offset) const {
  if (!sparse_) return bytes_;
  const off_t hole = ::lseek(fd_.get(), static_cast<off_t>(offset), SEEK_HOLE);
  return hole >= 0 ? static_cast<uint64_t>(hole) : bytes_;
}

Failure changed_failure(uint64_t offset) {
  Failure failure;
  failure.code = ErrorCode::source_read;
  failure.check = "changed";
  failure.offset = offset;
  return failure;
}

Failure read_failure(ErrorCode code, const PageSource::Result& result, uint64_t offset) {
  Failure failure;
  failure.code = code;
  failure.err = result.err;
  failure.syscall = result.read == PageSource::Read::failed ? "pread" : "";
  failure.check = result.read == PageSource::Read::cut_short ? "cut-short" : "";
  failure.offset = offset;
  return failure;
}

}  // namespace reap
