// Tells whether the kernel's OOM killer has ended a VMM: a full memory cgroup has no errno for the
// handler whose page did not fit.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace reap {

class OomWatch {
 public:
  // Finds the memory cgroup of a process.
  void start(pid_t pid);
  // True if the OOM killer has ended a process of that cgroup since; false also if it cannot be
  // known, as when the cgroup is gone.
  bool has_killed() const;

 private:
  std::string events_;  // path of its counters; empty: unknown
  uint64_t before_ = 0;
};

}  // namespace reap
