#include "session/oom_watch.h"

#include <cstdlib>

#include "base/small_file.h"

namespace reap {

namespace {

// Value after `key` at the start of a line.
uint64_t value_of(const std::string& text, const std::string& key) {
  const size_t at = ("\n" + text).find("\n" + key + " ");
  return at == std::string::npos ? 0 : std::strtoull(text.c_str() + at + key.size(), nullptr, 10);
}

// The OOM killer counts a kill in the cgroup of the process before it sends the signal
// (__oom_kill_process(), since 4.13).
uint64_t kills_in(const std::string& events) {
  return value_of(read_small_file(events), "oom_kill");
}

// Path in the hierarchy whose line of /proc/PID/cgroup contains `name` (cgroups(7)).
std::string group_in(const std::string& groups, const std::string& name) {
  const size_t at = groups.find(name);
  if (at == std::string::npos) return {};
  const size_t begin = at + name.size();
  return groups.substr(begin, groups.find('\n', begin) - begin);
}

}  // namespace

void OomWatch::start(pid_t pid) {
  const std::string groups = read_small_file("/proc/" + std::to_string(pid) + "/cgroup");
  const std::string first = group_in(groups, ":memory:");
  const std::string second = group_in(groups, "0::");
  if (!first.empty()) {
    events_ = "/sys/fs/cgroup/memory" + first + "/memory.oom_control";
  } else if (!second.empty()) {
    events_ = "/sys/fs/cgroup" + second + "/memory.events";
  }
  if (!events_.empty()) before_ = kills_in(events_);
}

bool OomWatch::has_killed() const { return !events_.empty() && kills_in(events_) > before_; }

}  // namespace reap
