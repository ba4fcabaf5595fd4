// What to prefetch: the pages of a working set in groups, in first-touch order.
#pragma once

#include <cstdint>
#include <vector>

#include "base/page.h"
#include "files/page_source.h"
#include "working_set/format.h"

namespace reap {

// The tables of a working-set file as they stand there. A set in no file has no groups.
struct Plan {
  uint64_t page_size = kPage;     // of the guest that was recorded
  std::vector<PlanGroup> groups;  // in first-touch order
  std::vector<PlanExtent> extents;
};

// A working-set file whose every page is that of a memory file in this state. Bytes may come from
// it while both files are as they were.
struct ProvenFile {
  PageSource file;
  FileStamp memory_file;
};

// The same pages in about the same order, for bytes that come from the memory file: in groups of up
// to kMaxMemoryGroupPages pages, zero pages like others. Groups have no data.
constexpr uint64_t kMaxMemoryGroupPages = kMaxGroupBytes / kPage;
Plan memory_groups_of(const Plan& plan);

// A stretch of the memory file, for guests whose page is not 4 KiB.
struct Block {
  uint64_t offset;
  uint64_t length;
};
constexpr uint64_t kMaxBlockBytes = 2 << 20;  // a multiple of every page size

// Whole guest pages, in the order in which the plan first touches them; neighbours in that order
// that are neighbours in memory go together.
std::vector<Block> blocks_of(const Plan& plan, uint64_t page_size, uint64_t memory_bytes);

}  // namespace reap
