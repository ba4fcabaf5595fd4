#include "uffd/guest_memory.h"

#include <algorithm>
#include <utility>

namespace reap {

GuestMemory::GuestMemory(std::vector<Region> regions, uint64_t page_size)
    : by_offset_(std::move(regions)), by_address_(by_offset_), page_size_(page_size) {
  std::sort(by_address_.begin(), by_address_.end(),
            [](const Region& a, const Region& b) { return a.base < b.base; });
  for (const Region& region : by_offset_) bytes_ += region.size;
}

const Region* GuestMemory::region_at(uint64_t address) const {
  auto after = std::upper_bound(by_address_.begin(), by_address_.end(), address,
                                [](uint64_t at, const Region& region) { return at < region.base; });
  if (after == by_address_.begin()) return nullptr;
  const Region& region = *--after;
  return address - region.base < region.size ? &region : nullptr;
}

GuestMemory::HostRange GuestMemory::host_range(uint64_t offset) const {
  auto after =
      std::upper_bound(by_offset_.begin(), by_offset_.end(), offset,
                       [](uint64_t at, const Region& region) { return at < region.offset; });
  const Region& region = *--after;
  const uint64_t inside = offset - region.offset;
  return {region.base + inside, region.size - inside};
}

}  // namespace reap
