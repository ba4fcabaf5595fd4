// The VMM's side of userfaultfd: create it and register memory. Faults are served elsewhere.
#pragma once

#include <cstddef>

#include "answer.h"
#include "base/posix.h"

namespace reap::guest {

struct Userfault {
  UniqueFd fd;
  // True where only faults of user mode are delivered: then a system call that touches missing
  // memory fails with EFAULT instead of waiting.
  bool user_mode_only = false;

  // As Firecracker does: /dev/userfaultfd first, then the system call; at last, what any user may,
  // which is all that `user_mode_only` tries.
  static Error open(Userfault* userfault, bool user_mode_only = false);
  Error register_missing(void* memory, size_t bytes) const;
  Error unregister(void* memory, size_t bytes) const;
};

}  // namespace reap::guest
