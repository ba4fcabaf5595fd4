// What to prefetch: the index of a working-set file, held against the memory that it is for.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "files/page_source.h"

namespace reap {

// The index of a working-set file as it stands there (docs/working-set-format.md). Page numbers
// and counts are in 4 KiB pages of the memory file.
struct PlanGroup {
  uint64_t data_offset;
  uint32_t data_bytes;
  uint32_t first_extent;
  uint32_t extent_count;
  uint32_t checksum;  // CRC-32C of the group's data
  uint32_t first_rank;
  uint32_t reserved;
};
struct PlanExtent {
  uint32_t first_page;
  uint32_t page_count;
  uint32_t rank;
  uint32_t flags;
};
static_assert(sizeof(PlanGroup) == 32 && sizeof(PlanExtent) == 16, "as in the file");
constexpr uint32_t kZeroExtent = 1;
constexpr uint64_t kPlanPage = 4096;
constexpr uint64_t kMostGroupBytes = 1 << 20;

// The states of both files in which every page of the set was found to be that of the memory file.
struct Proof {
  FileStamp memory_file;
  FileStamp working_set;
};

struct Plan {
  std::string path;                // of the working-set file; empty: there is none
  uint64_t page_size = kPlanPage;  // of the guest that was recorded
  std::vector<PlanGroup> groups;   // in first-touch order
  std::vector<PlanExtent> extents;
  // Whether bytes may come from the working-set file. Without it they come from the memory file.
  std::optional<Proof> proof;
};

// Whether every table entry stays inside the tables and the memory: what workers rely on.
bool fits(const Plan& plan, uint64_t memory_bytes);

// The same pages in about the same order, for bytes that come from the memory file: in groups of up
// to kMaxMemoryGroupPages pages, zero pages like others. There is no path, and groups have no data.
constexpr uint64_t kMaxMemoryGroupPages = kMostGroupBytes / kPlanPage;
Plan memory_groups_of(const Plan& plan);

// A stretch of the memory file, for guests whose page is not 4 KiB.
struct Block {
  uint64_t offset;
  uint64_t length;
};
constexpr uint64_t kMostBlockBytes = 2 << 20;  // a multiple of every page size

// Whole guest pages, in the order in which the plan first touches them; neighbours in that order
// that are neighbours in memory go together.
std::vector<Block> blocks_of(const Plan& plan, uint64_t page_size, uint64_t memory_bytes);

}  // namespace reap
