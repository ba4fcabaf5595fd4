#include "base/small_file.h"

#include <fcntl.h>

#include <algorithm>

#include "base/posix.h"

namespace reap {

std::string read_small_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char text[4096];
  const int64_t length = file ? read_whole(file.get(), 0, text, sizeof text) : 0;
  return {text, static_cast<size_t>(std::max<int64_t>(0, length))};
}

}  // namespace reap
