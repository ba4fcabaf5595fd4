// How much of a working set's places in a memory file the page cache holds. Samples, so that the
// cost is the same for every size.
#pragma once

#include <cstdint>

#include "files/cached_file.h"
#include "working_set/working_set.h"

namespace reap {

struct Residency {
  uint64_t pages = 0;  // of the set, of 4 KiB
  // An estimate from the samples: those that have to be read from the memory file.
  uint64_t missing_pages = 0;
};

// The set must be of a memory of this size.
Residency find_residency(const CachedFile& memory, const WorkingSet& set);

}  // namespace reap
