// Estimates how much of a working set's part of a memory file is in the page cache, from samples,
// so that the cost does not depend on the size.
#pragma once

#include <cstdint>

#include "files/cached_file.h"
#include "working_set/working_set.h"

namespace reap {

struct Residency {
  uint64_t pages = 0;  // of the set, 4 KiB each
  // Pages that have to be read from the memory file, estimated from the samples.
  uint64_t missing_pages = 0;
};

// The set must be for a memory file of this size.
Residency find_residency(const CachedFile& memory, const WorkingSet& set);

}  // namespace reap
