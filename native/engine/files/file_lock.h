// Locks between processes.
#pragma once

#include <string>

#include "base/failure.h"
#include "base/posix.h"

namespace reap {

// An exclusive lock (flock(2)) on a file of one path; released by the destructor, and by the kernel
// when the process ends.
class FileLock {
 public:
  FileLock() = default;
  FileLock(FileLock&&) noexcept = default;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock() { release(); }

  // Takes the lock without waiting for its owner; creates the file, mode 0600, if it is missing.
  // Without a failure, is_held() tells whether the lock was free.
  Failure try_take(const std::string& path);
  bool is_held() const { return static_cast<bool>(file_); }
  void release();

 private:
  UniqueFd file_;
};

}  // namespace reap
