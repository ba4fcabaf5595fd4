// Number of cores that this process may keep busy.
#pragma once

namespace reap {

// The smaller of the CPUs in its affinity mask and cpuset, and its cgroup's quota (version 2,
// rounded up). At least 1.
unsigned usable_cores();

}  // namespace reap
