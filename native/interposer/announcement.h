// The VMM's side of Firecracker's handshake: a userfaultfd, memory registered with it, one message.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reap::interposer {

constexpr size_t kMaxParts = 64;  // maximum number of regions that a handler accepts

// A mapping of a part of the memory file.
struct Part {
  uint8_t* address;
  size_t length;
  uint64_t offset;  // of the first byte, in the memory file
  int protection;
  int flags;
};

// Trivially destructible: a destructor would run at exit(), while vCPUs still fault.
struct Userfault {
  int fd = -1;
  bool user_mode_only = false;

  // Tries /dev/userfaultfd, then the system call, then the unprivileged form: user-mode faults
  // only. Returns 0 or a negative errno.
  int open();
  int register_missing(const Part& part) const;
  void wake(const Part& part) const;
  void close();
};

// Connects, sends the parts with the userfaultfd, and waits until they are read. The socket stays
// open as long as the process: a handler without a pidfd detects its exit by that. Returns 0 or a
// negative errno: ETIMEDOUT if the message was not accepted or read, ECONNRESET if it was refused
// unread.
int announce(const char* socket_path, const Part* parts, size_t count, int userfaultfd);

}  // namespace reap::interposer
