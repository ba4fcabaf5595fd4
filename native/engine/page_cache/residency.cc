#include "page_cache/residency.h"

#include <algorithm>

namespace reap {

namespace {

// Number of sampled blocks of the extent table, extents per block, and pages per extent. Together
// they cost at most a fifth of a millisecond.
constexpr uint64_t kBlocks = 16;
constexpr uint64_t kExtentsInBlock = 8;
constexpr uint64_t kPagesInLook = 32;

// A pseudo-random number below `count` (golden-ratio hash), different for each `i`.
uint64_t scatter(uint64_t i, uint64_t count) {
  return static_cast<uint32_t>(i * 0x9e3779b9) * count >> 32;
}

struct Sample {
  uint64_t pages = 0;
  uint64_t missing = 0;
};

void look_at(const CachedFile& memory, const PlanExtent& extent, uint64_t i, Sample* sample) {
  // Each page of a hidden file takes a separate call, which starts a read if the page is missing.
  const uint64_t look = memory.is_visible() ? kPagesInLook : 1;
  const uint64_t count = std::min<uint64_t>(extent.page_count, look);
  const uint64_t skipped = scatter(i, extent.page_count - count + 1);
  const uint64_t there = memory.count(extent.first_page + skipped, count);
  sample->pages += extent.page_count;
  sample->missing += uint64_t{extent.page_count} * (count - std::min(count, there)) / count;
}

}  // namespace

Residency find_residency(const CachedFile& memory, const WorkingSet& set) {
  const std::vector<PlanExtent>& extents = set.plan.extents;
  const uint64_t all = (extents.size() + kExtentsInBlock - 1) / kExtentsInBlock;
  const uint64_t blocks = std::min(all, kBlocks);
  // Zero pages are stored in the memory file like others, or are holes, which need no reads.
  const bool has_holes = memory.is_sparse();
  Sample sample;
  for (uint64_t block = 0; block < blocks; ++block) {
    // One block in each part of the table, at varying positions: the extents of each group are
    // sorted by address.
    const uint64_t first = (block * all + scatter(block, all)) / blocks * kExtentsInBlock;
    const uint64_t end = std::min<uint64_t>(first + kExtentsInBlock, extents.size());
    for (uint64_t i = first; i < end; ++i) {
      if (extents[i].flags & kZeroExtent && has_holes) continue;
      look_at(memory, extents[i], block * kExtentsInBlock + i - first, &sample);
    }
  }
  const uint64_t pages = set.touches.size() * (set.header.page_size / kPage);
  const uint64_t read = pages - (has_holes ? set.header.zero_pages : 0);
  // If all samples are holes, nothing is known: assume that all pages are missing.
  if (sample.pages == 0) return {pages, read};
  const double missing = static_cast<double>(read) * static_cast<double>(sample.missing) /
                         static_cast<double>(sample.pages);
  return {pages, static_cast<uint64_t>(missing)};
}

}  // namespace reap
