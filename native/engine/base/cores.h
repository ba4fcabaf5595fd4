// How many cores this process may keep busy.
#pragma once

namespace reap {

// The fewer of those that its affinity and its cpuset leave, and of its cgroup's quota (version 2,
// rounded up). At least 1.
unsigned usable_cores();

}  // namespace reap
