#include "vmm_memory.h"

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "hash.h"

namespace reap::guest {

namespace {

constexpr uint64_t kHugePage = 2 << 20;

uint64_t align_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

Error check(const RegionLayout& layout) {
  if (layout.page_size != 4096 && layout.page_size != kHugePage) {
    return {"the page size must be 4096 or 2097152", -EINVAL};
  }
  for (uint64_t size : layout.sizes) {
    if (size == 0 || size % layout.page_size != 0) {
      return {"a region's size must be a multiple of the page size, got " + std::to_string(size),
              -EINVAL};
    }
  }
  return {};
}

// The region at each position in the address space.
std::vector<size_t> address_order(size_t count, RegionOrder order) {
  std::vector<size_t> regions(count);
  std::iota(regions.begin(), regions.end(), size_t{0});
  if (order == RegionOrder::kDescending) std::reverse(regions.begin(), regions.end());
  if (order == RegionOrder::kShuffled) {
    Random random(count);
    for (size_t i = count; i > 1; i--) std::swap(regions[i - 1], regions[random.below(i)]);
  }
  return regions;
}

Error map_region(const HandshakeRegion& region) {
  auto* address = reinterpret_cast<void*>(region.base_host_virt_addr);
  const bool huge = region.page_size == kHugePage;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
                    (huge ? MAP_HUGETLB | 21 << MAP_HUGE_SHIFT : MAP_NORESERVE);
  if (::mmap(address, region.size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
    Error error = system_error("map guest memory", errno);
    if (huge) error.message += "; reserve huge pages with `sudo sysctl vm.nr_hugepages=64`";
    return error;
  }
  if (!huge && ::madvise(address, region.size, MADV_NOHUGEPAGE) != 0 && errno != EINVAL) {
    return system_error("forbid huge pages", errno);
  }
  return {};
}

}  // namespace

Error VmmMemory::map(const RegionLayout& layout, VmmMemory* memory) {
  if (Error error = check(layout)) return error;
  const uint64_t gap = align_up(layout.gap_bytes, layout.page_size);
  uint64_t reserved = kHugePage;
  for (uint64_t size : layout.sizes) reserved += size + gap;

  // Without access, so that the gaps stay free when other memory is mapped.
  void* data =
      ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) return system_error("reserve guest memory", errno);

  VmmMemory mapped;
  mapped.reservation_ = Mapping::adopt(data, reserved);
  mapped.page_size_ = layout.page_size;
  for (uint64_t size : layout.sizes) {
    mapped.regions_.push_back({0, size, mapped.pages_ * layout.page_size, layout.page_size});
    mapped.pages_ += size / layout.page_size;
  }
  uint64_t address = align_up(reinterpret_cast<uintptr_t>(data), kHugePage);
  for (size_t i : address_order(layout.sizes.size(), layout.order)) {
    HandshakeRegion& region = mapped.regions_[i];
    region.base_host_virt_addr = address;
    address += region.size + gap;
    if (Error error = map_region(region)) return error;
  }
  *memory = std::move(mapped);
  return {};
}

void VmmMemory::adopt(void* data, uint64_t bytes, uint64_t offset) {
  regions_.push_back({reinterpret_cast<uintptr_t>(data), bytes, offset, page_size_});
  pages_ = std::max(pages_, (offset + bytes) / page_size_);
}

uint8_t* VmmMemory::page(uint64_t number) const { return pieces(number, 1).front().data; }

std::vector<VmmMemory::Piece> VmmMemory::pieces(uint64_t first, uint64_t count) const {
  std::vector<Piece> pieces;
  const uint64_t begin = first * page_size_;
  const uint64_t end = begin + count * page_size_;
  for (const HandshakeRegion& region : regions_) {
    const uint64_t from = std::max(begin, region.offset);
    const uint64_t to = std::min(end, region.offset + region.size);
    if (from >= to) continue;
    const uint64_t address = region.base_host_virt_addr + (from - region.offset);
    pieces.push_back({reinterpret_cast<uint8_t*>(address), to - from});
  }
  return pieces;
}

}  // namespace reap::guest
