// A look at what a restore would find: how much of a working set is in the page cache, where it is
// needed. Takes samples, so that it costs the same for every size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/failure.h"

namespace reap {

struct Survey {
  uint64_t page_size = 0;     // of the guest; 0: the working-set file cannot be made out
  uint64_t memory_bytes = 0;  // that the working set is for
  uint64_t pages = 0;         // 4 KiB pages of the working set
  uint64_t extents = 0;       // in which they lie
  uint64_t disks = 0;         // disk images of which it has pages too
  uint64_t memory_device = 0;
  uint64_t set_device = 0;
  uint64_t memory_file_bytes = 0;
  // Estimates, from the samples: aligned stretches of 64 KiB that have pages of the working set,
  // for each of which a mapping takes one read fault (fault-around); pages and extents of the
  // memory file that are not in the page cache; bytes of the working-set file's data that are not.
  uint64_t windows = 0;
  uint64_t missing_pages = 0;
  uint64_t missing_extents = 0;
  uint64_t missing_bytes = 0;
  bool is_visible = false;  // whether the kernel tells about the memory file
  // Of the pages around those of the working set (256 KiB; a fault maps a quarter of that), the
  // share that is there; where that is not told, all.
  double share_around = 1;
  // What it takes cachestat(2) to pass one of them, in nanoseconds; 0: not known. It passes folios:
  // where they are large this is a tenth, and they are mapped at less cost too.
  double look_ns = 0;
};

// What `working_set` says of itself is taken as it stands, as far as it is inside the file: this is
// for a choice between two ways that both check it.
Failure survey(const std::string& memory_file, const std::string& working_set, Survey* found);

// The same for a thread that may not wait, if it can be had so: for files on a local disk of which
// one was surveyed before, whose names and tables are in memory.
bool survey_at_once(const std::string& memory_file, const std::string& working_set, Survey* found);

}  // namespace reap
