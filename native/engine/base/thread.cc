#include "base/thread.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <string_view>

#include "base/posix.h"

namespace reap {

bool is_runnable(pid_t thread) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
  const UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
  char text[128];
  const ssize_t length = fd ? ::read(fd.get(), text, sizeof text) : -1;
  if (length <= 0) return false;
  // "ID (NAME) STATE …", proc_pid_stat(5). The name, of 15 bytes at most, may contain anything.
  const std::string_view line(text, static_cast<size_t>(length));
  const size_t name_end = line.rfind(") ");
  return name_end != std::string_view::npos && line.substr(name_end + 2, 1) == "R";
}

}  // namespace reap
