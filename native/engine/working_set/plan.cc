#include "working_set/plan.h"

#include <algorithm>

#include "base/page.h"
#include "base/page_bitmap.h"

namespace reap {

Plan memory_groups_of(const Plan& plan) {
  Plan places;
  places.page_size = plan.page_size;
  std::vector<PlanExtent> ordered = plan.extents;
  // Extents from a file are in group order; others are in address order.
  if (plan.groups.empty()) {
    std::sort(ordered.begin(), ordered.end(),
              [](const PlanExtent& a, const PlanExtent& b) { return a.rank < b.rank; });
  }
  uint32_t pages = 0;  // in the current group
  const auto end_group = [&] {
    if (pages == 0) return;
    PlanGroup group{};
    if (!places.groups.empty()) {
      group.first_extent = places.groups.back().first_extent + places.groups.back().extent_count;
    }
    group.extent_count = static_cast<uint32_t>(places.extents.size()) - group.first_extent;
    std::sort(places.extents.begin() + group.first_extent, places.extents.end(),
              [](const PlanExtent& a, const PlanExtent& b) { return a.first_page < b.first_page; });
    places.groups.push_back(group);
    pages = 0;
  };
  for (PlanExtent extent : ordered) {
    while (extent.page_count > 0) {
      PlanExtent part = extent;
      part.page_count =
          std::min(extent.page_count, static_cast<uint32_t>(kMaxMemoryGroupPages) - pages);
      part.flags = 0;
      places.extents.push_back(part);
      extent.first_page += part.page_count;
      extent.page_count -= part.page_count;
      pages += part.page_count;
      if (pages == kMaxMemoryGroupPages) end_group();
    }
  }
  end_group();
  return places;
}

std::vector<Block> blocks_of(const Plan& plan, uint64_t page_size, uint64_t memory_bytes) {
  std::vector<PlanExtent> by_rank = plan.extents;
  std::sort(by_rank.begin(), by_rank.end(),
            [](const PlanExtent& a, const PlanExtent& b) { return a.rank < b.rank; });
  PageBitmap seen(memory_bytes / page_size);
  std::vector<Block> blocks;
  if (!seen) return blocks;
  for (const PlanExtent& extent : by_rank) {
    const uint64_t first = extent.first_page * kPage / page_size;
    const uint64_t last =
        ((uint64_t{extent.first_page} + extent.page_count) * kPage - 1) / page_size;
    for (uint64_t page = first; page <= last; ++page) {
      if (!seen.set(page)) continue;
      const uint64_t offset = page * page_size;
      if (!blocks.empty() && blocks.back().offset + blocks.back().length == offset &&
          blocks.back().length + page_size <= kMaxBlockBytes) {
        blocks.back().length += page_size;
      } else {
        blocks.push_back({offset, page_size});
      }
    }
  }
  return blocks;
}

}  // namespace reap
