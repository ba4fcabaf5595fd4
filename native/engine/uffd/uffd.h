// The userfaultfd ioctls: one function each, classified where they return, errno with its sign.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>

#include "base/posix.h"

namespace reap::uffd {

// What an install came to. Only `failed` is an error; the others are expected races.
enum class Outcome {
  installed,     // all of it
  partial,       // `bytes` of it, and those are woken; go on behind them
  present,       // EEXIST: the first page is there already. Waiters are NOT woken by this.
  deferred,      // EAGAIN: an UFFD_EVENT_REMOVE is unread, or its madvise() has not run on yet
  unregistered,  // ENOENT: the range is not inside one registered mapping
  no_memory,     // ENOMEM: the VMM's memory cgroup or the hugepage pool is full
  gone,          // ESRCH: the VMM's address space is gone
  failed,
};

struct Result {
  Outcome outcome;
  uint64_t bytes = 0;
  int err = 0;  // negative errno, 0 when installed
};

// Reads what an UFFDIO_COPY or UFFDIO_ZEROPAGE answered. `error` is errno after a failed ioctl and
// 0 after a good one, `done` the ioctl's copy or zeropage field, initialised to 0.
Result classify(int error, int64_t done, uint64_t length);

Result copy(int uffd, uint64_t address, const void* source, uint64_t length);
// Only for 4 KiB memory: on hugetlb the kernel answers EINVAL.
Result zeropage(int uffd, uint64_t address, uint64_t length);
int wake(int uffd, uint64_t address, uint64_t length);
int unregister(int uffd, uint64_t address, uint64_t length);

// Whether there is a message to read, for less than a read that finds none. Never for a blocking
// userfaultfd, whose read would wait for one.
bool has_messages(int uffd);
// Number of messages read, 0 when there are none, or a negative errno.
int read_messages(int uffd, uffd_msg* messages, size_t capacity);

// epoll reports a blocking userfaultfd as broken, at once and for ever (userfaultfd(2)). The flag
// belongs to the open file and so to the VMM too, which only registers with it and never reads.
void make_nonblocking(int uffd);

// Whether `fd` is a userfaultfd (and not, say, /dev/null).
bool is_userfaultfd(int fd);

// Ways to get a userfaultfd on this machine, for `doctor`: 0 or a negative errno each.
struct Availability {
  int device;          // /dev/userfaultfd (Linux 6.1)
  int syscall;         // userfaultfd(2), kernel-mode faults included
  int user_mode_only;  // userfaultfd(2) with UFFD_USER_MODE_ONLY (Linux 5.11)
  uint64_t features;   // of the first way that works
};
Availability probe();

}  // namespace reap::uffd
