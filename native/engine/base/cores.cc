#include "base/cores.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "base/small_file.h"

namespace reap {

namespace {

// The tightest quota of this cgroup and its ancestors, in cores; at most `cores`.
unsigned quota(unsigned cores) {
  const std::string groups = read_small_file("/proc/self/cgroup");
  const size_t at = groups.find("0::/");  // cgroups(7)
  if (at == std::string::npos) return cores;
  std::string group = groups.substr(at + 3, groups.find('\n', at) - at - 3);
  if (group == "/") group.clear();
  for (;;) {
    unsigned long long allowed = 0;
    unsigned long long period = 0;
    const std::string limit = read_small_file("/sys/fs/cgroup" + group + "/cpu.max");
    // "max 100000" means no quota.
    if (std::sscanf(limit.c_str(), "%llu %llu", &allowed, &period) == 2 && period > 0) {
      cores = static_cast<unsigned>(std::min<uint64_t>(cores, (allowed + period - 1) / period));
    }
    if (group.empty()) break;
    group.erase(group.rfind('/'));
  }
  return cores;
}

}  // namespace

unsigned usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // EINVAL on a machine with more than 1024 CPUs: then there are enough.
  const bool known = ::sched_getaffinity(0, sizeof set, &set) == 0;
  const auto allowed = static_cast<unsigned>(known ? CPU_COUNT(&set) : CPU_SETSIZE);
  return std::max(1U, quota(allowed));
}

}  // namespace reap
