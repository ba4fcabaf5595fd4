// How much of a working set's places in a memory file the page cache holds. Samples, so that the
// cost is the same for every size.
#pragma once

#include <cstdint>
#include <string>

#include "base/failure.h"

namespace reap {

struct Residency {
  uint64_t memory_file_bytes = 0;
  bool is_visible = false;  // whether the kernel tells this process about the memory file
  // From the header of the working set.
  uint64_t page_size = 0;  // of the guest; 0 where there is no sound header
  uint64_t memory_bytes = 0;
  uint64_t pages = 0;  // of 4 KiB
  uint64_t disks = 0;  // disk images of which it has pages
  uint64_t touches = 0;
  uint64_t written_touches = 0;
  // An estimate from the samples: pages of the set that have to be read from the memory file.
  uint64_t missing_pages = 0;
};

// An empty path stands for no working set. Its tables are taken as they stand as far as they lie
// inside the file: whoever installs or prefetches pages checks them.
Failure find_residency(const std::string& memory_file, const std::string& working_set,
                       Residency* found);

}  // namespace reap
