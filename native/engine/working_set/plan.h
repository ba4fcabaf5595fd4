// Plan of a prefetch: the pages of a working set in groups, in first-touch order.
#pragma once

#include <cstdint>
#include <vector>

#include "base/page.h"
#include "files/page_source.h"
#include "working_set/format.h"

namespace reap {

// Tables of a working-set file. A set without a file has no groups.
struct Plan {
  uint64_t page_size = kPage;     // of the recorded guest
  std::vector<PlanGroup> groups;  // in first-touch order
  std::vector<PlanExtent> extents;
};

// A working-set file whose every page equals that of a memory file in this state. Its bytes may be
// installed as long as both files are unchanged.
struct ProvenFile {
  PageSource file;
  FileStamp memory_file;
};

// The same pages in nearly the same order, for bytes from the memory file: in groups of at most
// kMaxMemoryGroupPages pages, including zero pages. These groups have no data.
constexpr uint64_t kMaxMemoryGroupPages = kMaxGroupBytes / kPage;
Plan memory_groups_of(const Plan& plan);

// A contiguous range of the memory file, for guests whose page size is not 4 KiB.
struct Block {
  uint64_t offset;
  uint64_t length;
};
constexpr uint64_t kMaxBlockBytes = 2 << 20;  // a multiple of every page size

// Whole guest pages, in the plan's first-touch order; pages that are consecutive both in that order
// and in memory are merged.
std::vector<Block> blocks_of(const Plan& plan, uint64_t page_size, uint64_t memory_bytes);

}  // namespace reap
