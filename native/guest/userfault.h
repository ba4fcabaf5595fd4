// The VMM's side of userfaultfd: creates it and registers memory. Faults are served elsewhere.
#pragma once

#include <cstddef>

#include "answer.h"
#include "base/posix.h"

namespace reap::guest {

struct Userfault {
  UniqueFd fd;
  // True if only user-mode faults are delivered: a system call on missing memory then fails with
  // EFAULT instead of waiting.
  bool user_mode_only = false;

  // Like Firecracker: tries /dev/userfaultfd, then the system call, then the unprivileged form,
  // which is the only one tried with `user_mode_only`.
  static Error open(Userfault* userfault, bool user_mode_only = false);
  Error register_missing(void* memory, size_t bytes) const;
  Error unregister(void* memory, size_t bytes) const;
};

}  // namespace reap::guest
