// The VMM's side of Firecracker's handshake: a userfaultfd, memory registered with it, one message.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reap::interposer {

constexpr size_t kMaxParts = 64;  // the most regions that a handler takes

// A mapping of a part of the memory file.
struct Part {
  uint8_t* address;
  size_t length;
  uint64_t offset;  // of its first byte in the memory file
  int protection;
  int flags;
};

// Trivially destroyed: a destructor would run at exit(), beside vCPUs that still fault.
struct Userfault {
  int fd = -1;
  bool user_mode_only = false;

  // /dev/userfaultfd, then the system call, then what any user may: faults of user mode alone. 0 or
  // a negative errno.
  int open();
  int register_missing(const Part& part) const;
  void wake(const Part& part) const;
  void close();
};

// Connects, sends the parts with the userfaultfd, and waits until they are read. The socket stays
// open as long as the process, by which a handler that cannot have a pidfd sees its end. 0 or a
// negative errno: ETIMEDOUT when nobody has accepted or read, ECONNRESET when it was refused
// unread.
int announce(const char* socket_path, const Part* parts, size_t count, int userfaultfd);

}  // namespace reap::interposer
