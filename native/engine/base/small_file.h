// Files of procfs and cgroupfs.
#pragma once

#include <string>

namespace reap {

// The first 4 KiB of a file; empty if it cannot be read.
std::string read_small_file(const std::string& path);

}  // namespace reap
