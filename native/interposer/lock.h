// What makes a call of the library look like the C library's own mmap() to the thread that makes
// it.
#pragma once

#include <cerrno>
#include <csignal>

namespace reap::interposer {

// No signal handler runs, and no cancellation is acted on: mmap() is not a cancellation point, and
// what is left half done here would stay so.
class Undisturbed {
 public:
  Undisturbed();
  ~Undisturbed();
  Undisturbed(const Undisturbed&) = delete;
  Undisturbed& operator=(const Undisturbed&) = delete;

 private:
  sigset_t signals_;
  int cancel_state_;
};

// One thread at a time. A signal handler that maps memory would wait for the thread that it
// interrupts; an allocator that the C library calls under the lock would wait for itself, unless it
// asks first.
class Lock {
 public:
  Lock();
  ~Lock();
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  static bool is_mine();

 private:
  const Undisturbed undisturbed_;
};

class KeepErrno {
 public:
  KeepErrno() = default;
  ~KeepErrno() { errno = errno_; }
  KeepErrno(const KeepErrno&) = delete;
  KeepErrno& operator=(const KeepErrno&) = delete;

 private:
  const int errno_ = errno;
};

}  // namespace reap::interposer
