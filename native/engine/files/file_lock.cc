#include "files/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/test_hooks.h"
#include "files/private_file.h"

namespace reap {

namespace {

// Each further attempt means that another process has replaced the file meanwhile.
constexpr int kAttempts = 16;

Failure open_lock(const std::string& path, UniqueFd* file) {
  // Without O_NONBLOCK, opening the terminal of a modem would wait. Write access: NFS emulates the
  // lock with one of fcntl(2).
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  file->reset(::open(path.c_str(), kFlags, 0600));
  if (!*file) return failed_call(ErrorCode::store_io, -errno, "open");
  struct stat status {};
  if (::fstat(file->get(), &status) != 0) {
    return failed_call(ErrorCode::store_io, -errno, "fstat");
  }
  if (!S_ISREG(status.st_mode)) {
    Failure failure;
    failure.code = ErrorCode::store_io;
    failure.check = "regular-file";
    return failure;
  }
  return check_writers(file->get());
}

bool is_at(const std::string& path, int file) {
  struct stat ours {};
  struct stat there {};
  return ::fstat(file, &ours) == 0 && ::lstat(path.c_str(), &there) == 0 &&
         ours.st_dev == there.st_dev && ours.st_ino == there.st_ino;
}

}  // namespace

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  release();
  file_ = std::move(other.file_);
  return *this;
}

// A file that was removed between its open and its lock excludes nobody: the next process creates
// another one. Test: "a lock on a file that was removed meanwhile is taken on the new one".
Failure FileLock::try_take(const std::string& path) {
  release();
  for (int i = 0; i < kAttempts; ++i) {
    FileLock lock;
    if (Failure failure = open_lock(path, &lock.file_)) return failure;
    REAP_HOOK(before_lock);
    if (::flock(lock.file_.get(), LOCK_EX | LOCK_NB) != 0) {
      const int error = -errno;
      // release() would give up nothing of ours.
      lock.file_.reset();
      return error == -EWOULDBLOCK ? Failure{} : failed_call(ErrorCode::store_io, error, "flock");
    }
    if (!is_at(path, lock.file_.get())) continue;
    *this = std::move(lock);
    return {};
  }
  return {};
}

// The lock belongs to the open file: a child that is being started has it until it executes its
// program. Test: "a lock that is released is free although a child has the descriptor".
void FileLock::release() {
  if (file_) ::flock(file_.get(), LOCK_UN);
  file_.reset();
}

}  // namespace reap
