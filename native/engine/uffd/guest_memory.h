// Layout of guest memory: memory-file offsets and addresses in the VMM.
#pragma once

#include <cstdint>
#include <vector>

namespace reap {

struct Region {
  uint64_t base;    // address in the VMM's address space
  uint64_t size;    // bytes
  uint64_t offset;  // of the first byte, in the memory file
};

class GuestMemory {
 public:
  // The regions cover [0, bytes) of the memory file, sorted by offset (checked by parse_handshake).
  GuestMemory(std::vector<Region> regions, uint64_t page_size);

  uint64_t page_size() const { return page_size_; }
  uint64_t bytes() const { return bytes_; }
  uint64_t pages() const { return bytes_ / page_size_; }
  uint64_t page_of(uint64_t offset) const { return offset / page_size_; }
  const std::vector<Region>& regions() const { return by_offset_; }

  // The region that contains an address of the VMM, or null.
  const Region* region_at(uint64_t address) const;

  // Address of a memory-file offset, and number of bytes from there to the end of its region.
  struct HostRange {
    uint64_t address;
    uint64_t length;
  };
  HostRange host_range(uint64_t offset) const;

 private:
  std::vector<Region> by_offset_;
  std::vector<Region> by_address_;
  uint64_t page_size_;
  uint64_t bytes_ = 0;
};

}  // namespace reap
