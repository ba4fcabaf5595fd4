// Makes a call of the library look like the C library's mmap() to the calling thread.
#pragma once

#include <cerrno>
#include <csignal>

namespace reap::interposer {

// Blocks signal handlers and cancellation: mmap() is not a cancellation point, and an interrupted
// update would stay incomplete.
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
// checks first.
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
