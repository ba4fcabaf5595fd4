// Guest memory of the fake VMM: regions at arbitrary addresses, consecutive in the memory file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "answer.h"
#include "base/posix.h"
#include "handshake_sender.h"

namespace reap::guest {

// Order of the regions' addresses; that of their offsets is always ascending.
enum class RegionOrder { kAscending, kDescending, kShuffled };

struct RegionLayout {
  uint64_t page_size = 4096;
  std::vector<uint64_t> sizes;
  RegionOrder order = RegionOrder::kAscending;
  uint64_t gap_bytes = 0;  // unmapped gap between neighbours
};

class VmmMemory {
 public:
  struct Piece {
    uint8_t* data;
    size_t bytes;
  };

  static Error map(const RegionLayout& layout, VmmMemory* memory);
  // Adds memory of 4 KiB pages that was mapped elsewhere and outlives this object.
  void adopt(void* data, uint64_t bytes, uint64_t offset);

  explicit operator bool() const { return !regions_.empty(); }
  uint64_t page_size() const { return page_size_; }
  uint64_t pages() const { return pages_; }
  const std::vector<HandshakeRegion>& regions() const { return regions_; }

  // Page numbers count pages of `page_size()` in memory-file order.
  uint8_t* page(uint64_t number) const;
  // Memory of `count` pages, split at region boundaries.
  std::vector<Piece> pieces(uint64_t first, uint64_t count) const;

 private:
  Mapping reservation_;
  std::vector<HandshakeRegion> regions_;
  uint64_t page_size_ = 4096;
  uint64_t pages_ = 0;
};

}  // namespace reap::guest
