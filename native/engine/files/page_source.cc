#include "files/page_source.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/page.h"
#include "base/test_hooks.h"
#include "base/thread_pool.h"

namespace reap {

namespace {

// Bytes that are copied from the page cache in one call. A kernel that is not preemptible copies a
// large folio, up to 2 MiB, to its end before it gives the core to a thread that wakes.
constexpr uint64_t kMaxCopy = 64 << 10;

constexpr auto kFuseMagic = 0x65735546;  // FUSE_SUPER_MAGIC, in newer linux/magic.h

template <typename Time>
uint64_t nanoseconds_of(const Time& time) {
  return static_cast<uint64_t>(time.tv_sec) * 1000000000 + static_cast<uint64_t>(time.tv_nsec);
}

// A read at the end of the file reads nothing, but is refused where the flag is not supported.
bool lacks_nowait(int fd, uint64_t bytes) {
  uint8_t byte;
  iovec part{&byte, 1};
  return ::preadv2(fd, &part, 1, static_cast<off_t>(bytes), RWF_NOWAIT) < 0 && errno == EOPNOTSUPP;
}

// The stamp that statx(2) reports, since Linux 4.11.
FileStamp ask(int fd, int flags) {
  struct statx status {};
  if (::statx(fd, "", flags | AT_EMPTY_PATH, STATX_BASIC_STATS, &status) != 0) return {};
  return {makedev(status.stx_dev_major, status.stx_dev_minor), status.stx_ino, status.stx_size,
          nanoseconds_of(status.stx_mtime), nanoseconds_of(status.stx_ctime)};
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

SourceFd& SourceFd::operator=(SourceFd&& other) noexcept {
  close();
  fd_ = std::move(other.fd_);
  elsewhere_ = other.elsewhere_;
  return *this;
}

void SourceFd::close() {
  if (!fd_ || !elsewhere_) return;
  const auto owned = std::make_shared<UniqueFd>(std::move(fd_));
  ThreadPool::shared().run([owned] { owned->reset(); });
}

int PageSource::adopt(UniqueFd fd) {
  fd_ = SourceFd(std::move(fd));
  if (!fd_) return -errno;
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return -errno;
  if (!S_ISREG(status.st_mode)) return -EINVAL;
  bytes_ = static_cast<uint64_t>(status.st_size);
  stamp_ = stamp_of(status);
  // st_blocks counts units of 512 bytes whatever the block size (stat(2)).
  sparse_ = static_cast<uint64_t>(status.st_blocks) * 512 < bytes_;
  data_ = DataMap(bytes_);
  struct statfs file_system {};
  if (::fstatfs(fd_.get(), &file_system) == 0) {
    in_memory_ = file_system.f_type == TMPFS_MAGIC;
    has_cachestat_ = has_cachestat(file_system);
    is_fuse_ = file_system.f_type == kFuseMagic;
  }
  may_hang_ = !in_memory_ && lacks_nowait(fd_.get(), bytes_);
  if (may_hang_) fd_.close_elsewhere();
  if (may_hang_ && may_see_cache(fd_.get(), status)) view_.map(fd_.get(), bytes_);
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
  // Not on FUSE, where a direct read that hangs survives even SIGKILL; buffered ones do not
  // (request_wait_answer(), folio_wait_locked_killable()).
  if (!is_fuse_) direct_.reset(::open(this->path().c_str(), kFlags | O_DIRECT));
  find_holes();
  return 0;
}

// A file that is being written may get data where a hole was found, and in the same tick of the
// clock no stamp shows it. A tick is waited for; a file that is still not settled then counts as
// data.
bool PageSource::is_settled_soon() const {
  constexpr int kTicks = 20;
  for (int i = 0; i < kTicks && !is_settled(stamp_[4]); ++i) ::usleep(1000);
  return is_settled(stamp_[4], writers() == Writers::some ? kMaxWrite : 0) &&
         current_stamp() == stamp_;
}

void PageSource::find_holes() {
  if (sparse_ && is_settled_soon()) found_data_ = shared_data_map(fd_.get(), stamp_);
}

// A change of status may be a write whose time was set back. Test: "a hole that was written to
// counts as data though the time was set back".
const DataMap& PageSource::data_map(const FileStamp& state) const {
  return found_data_ && state == stamp_ ? *found_data_ : data_;
}

FileStamp PageSource::current_stamp() const {
  return may_hang_ ? ask(fd_.get(), AT_STATX_DONT_SYNC) : refreshed_stamp();
}

FileStamp PageSource::refreshed_stamp() const {
  struct stat status {};
  return ::fstat(fd_.get(), &status) == 0 ? stamp_of(status) : FileStamp{};
}

PageSource::Result PageSource::read_cached(uint64_t offset, void* buffer, uint64_t length) const {
  if (REAP_HOOK_SAYS(is_cold)) return {Read::would_block};
  if (in_memory_) return read(offset, buffer, length);
  if (may_hang_) return {view_.copy(offset, buffer, length) ? Read::done : Read::would_block};
  auto* to = static_cast<uint8_t*>(buffer);
  while (length > 0) {
    iovec part{to, std::min(length, kMaxCopy)};
    const ssize_t got = ::preadv2(fd_.get(), &part, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    // A short read: either the cached part or the file ends here; the blocking read tells which.
    if (got >= 0 && static_cast<size_t>(got) < part.iov_len) return {Read::would_block};
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN ? Result{Read::would_block} : Result{Read::failed, -errno};
    to += got;
    offset += static_cast<uint64_t>(got);
    length -= static_cast<uint64_t>(got);
  }
  return {Read::done};
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

PageSource::Result PageSource::read_direct(uint64_t offset, void* buffer, uint64_t length) const {
  return direct_ ? read_fully(direct_.get(), offset, buffer, length)
                 : Result{Read::failed, -EINVAL};
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
  if (!all_there) result = read_direct(offset, buffer, length);
  // Some file systems open with O_DIRECT and then refuse the read.
  if (result.read == Read::failed && result.err == -EINVAL) result = read(offset, buffer, length);
  result.waited = true;
  return result;
}

bool PageSource::is_cached(uint64_t offset, uint64_t length) const {
  if (may_hang_) return view_.has(offset, length);
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
