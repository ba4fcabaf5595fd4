// What a restore has to read for a working set now, and how fast the disk delivers it.
#pragma once

#include <cstdint>

#include "files/page_source.h"
#include "working_set/working_set.h"

namespace reap {

// Where a restore reads the pages' bytes.
enum class BytesFrom { working_set_file, memory_file };

struct ReadCost {
  uint64_t bytes = 0;  // of the set in this file; holes have none
  // False if the kernel does not report residency to this process: then nothing counts as cached.
  bool is_visible = false;
  uint64_t cached_bytes = 0;
  // Reads of a restore that would wait for the disk. Of a group or a block all is read if a page is
  // missing.
  uint64_t reads = 0;
  uint64_t read_bytes = 0;
  // Some of these reads, done past the page cache, so that it stays as it is. None if the file
  // system lacks O_DIRECT.
  uint64_t sampled_reads = 0;
  uint64_t sampled_bytes = 0;
  uint64_t sample_us = 0;
};

// `file` is the set's own file, or its memory file. A sample takes at most about a tenth of a
// second if the disk answers.
ReadCost find_read_cost(const PageSource& file, const WorkingSet& set, BytesFrom from);

}  // namespace reap
