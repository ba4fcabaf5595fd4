// The userfaultfd ioctls: one function each, which classifies the result. errno is negative.
#pragma once

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>

#include "base/posix.h"

namespace reap::uffd {

// Outcome of an install. Only `failed` is an error; the others are expected races.
enum class Outcome {
  installed,     // the whole range
  partial,       // `bytes` of it, whose waiters are woken; continue after them
  present,       // EEXIST: the first page is present. This does NOT wake waiters.
  deferred,      // EAGAIN: an UFFD_EVENT_REMOVE is unread, or its madvise() has not completed
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

// Classifies the result of UFFDIO_COPY or UFFDIO_ZEROPAGE. `error` is errno after a failed ioctl
// and else 0, `done` the ioctl's copy or zeropage field, initialised to 0.
Result classify(int error, int64_t done, uint64_t length);

Result copy(int uffd, uint64_t address, const void* source, uint64_t length);
// For 4 KiB pages only: on hugetlb the kernel returns EINVAL.
Result zeropage(int uffd, uint64_t address, uint64_t length);
int wake(int uffd, uint64_t address, uint64_t length);
// Returns 0 or a negative errno: -ESRCH if the VMM's address space is gone.
int unregister(int uffd, uint64_t address, uint64_t length);
// True while a thread of the VMM is held in madvise(): its UFFD_EVENT_REMOVE is yet to be queued,
// waits to be read, or was read a moment ago. Always false before Linux 5.7.
bool is_changing(int uffd, uint64_t address, uint64_t length);

// True if a message is pending; cheaper than a read that finds none. Always false for a blocking
// userfaultfd, whose read would wait.
bool has_messages(int uffd);
// Returns the number of messages read, 0 if none are pending, or a negative errno.
int read_messages(int uffd, uffd_msg* messages, size_t capacity);

// What the message is about, if that cannot be served: a fault on a page that is present, which no
// install can answer, or a fork, whose child would be served by nobody. Otherwise null.
const char* unsupported_event(const uffd_msg& message);

// epoll reports a blocking userfaultfd as broken, at once and for ever (userfaultfd(2)). The flag
// belongs to the open file and so also to the VMM, which only registers memory and never reads.
void make_nonblocking(int uffd);

// True if `fd` is a userfaultfd (and not, say, /dev/null).
bool is_userfaultfd(int fd);

// What the VMM has asked for in UFFDIO_API, if that cannot be served: fork events, or a signal in
// place of each fault. Otherwise null, as when /proc does not tell.
const char* unsupported_feature(int uffd);

// Ways to get a userfaultfd on this machine, for `doctor`: each 0 or a negative errno.
struct Availability {
  int device;          // /dev/userfaultfd (Linux 6.1)
  int syscall;         // userfaultfd(2), kernel-mode faults included
  int user_mode_only;  // userfaultfd(2) with UFFD_USER_MODE_ONLY (Linux 5.11)
  uint64_t features;   // of the first way that succeeds
};
Availability probe();

}  // namespace reap::uffd
