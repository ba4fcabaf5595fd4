#include "files/private_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/posix.h"

namespace reap {

namespace {

constexpr off_t kMaxBytes = 1 << 20;

bool is_private(int fd, mode_t type, struct stat* status, Failure* untrusted) {
  if (::fstat(fd, status) != 0 || (status->st_mode & S_IFMT) != type) return false;
  const Failure failure = check_writers(fd);
  if (!failure) return true;
  if (untrusted) *untrusted = failure;
  return false;
}

}  // namespace

Failure check_writers(int fd) {
  struct stat status {};
  Failure failure;
  if (::fstat(fd, &status) != 0) return failed_call(ErrorCode::untrusted_file, -errno, "fstat");
  if (status.st_uid != ::geteuid() && status.st_uid != 0) {
    failure.check = "owner";
    failure.got = status.st_uid;
  } else if (status.st_mode & (S_IWGRP | S_IWOTH)) {
    failure.check = "mode";
    failure.got = status.st_mode & 07777;
  } else {
    return {};
  }
  failure.code = ErrorCode::untrusted_file;
  return failure;
}

bool read_private_file(const std::string& folder, const std::string& name,
                       std::vector<uint8_t>* bytes, Failure* untrusted) {
  struct stat status {};
  const UniqueFd at(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!at || !is_private(at.get(), S_IFDIR, &status, untrusted)) return false;
  // Without O_NONBLOCK, opening a named pipe would wait.
  const UniqueFd file(
      ::openat(at.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file || !is_private(file.get(), S_IFREG, &status, untrusted)) return false;
  if (status.st_size > kMaxBytes) return false;
  bytes->resize(static_cast<size_t>(status.st_size));
  return read_whole(file.get(), 0, bytes->data(), bytes->size()) == status.st_size;
}

}  // namespace reap
