// The allocator of the embedded guest. It lives inside the memory that it hands out, so that a
// snapshot of that memory is a snapshot of it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reap::guest {

// Size classes with free lists, over chunks that are taken in a scattered order: what is
// allocated together lies together, and the rest is all over the memory, with holes of untouched
// zero pages in between. A long-running guest's memory looks like this.
class Heap {
 public:
  // Takes over the zeroed memory at `base`, except its first `reserved` bytes.
  void initialize(uint8_t* base, size_t memory_bytes, size_t reserved, uint64_t seed);

  // 16-byte aligned; what it contains is undefined. Null when the memory is full.
  void* allocate(size_t bytes);
  // `bytes` as it was allocated.
  void release(void* block, size_t bytes);

  // Memory in chunks that were begun.
  size_t used_bytes() const { return chunks_used_ * chunk_bytes_; }

  static constexpr size_t kLargestBlock = 32 << 10;

 private:
  struct FreeBlock {
    FreeBlock* next;
  };
  struct SizeClass {
    FreeBlock* free;
    uint8_t* slab;      // the next block that was never used
    uint8_t* slab_end;  // a slab serves small blocks only
  };
  // 64 bytes, then four classes for each doubling, up to kLargestBlock.
  static constexpr size_t kClasses = 1 + 4 * 9;
  static constexpr size_t kSlabBytes = 16 << 10;
  static constexpr size_t kLargestInSlab = 1 << 10;

  uint8_t* carve(size_t bytes);

  uint8_t* base_;
  size_t chunk_bytes_;
  size_t chunk_count_;
  size_t chunks_used_;
  uint64_t seed_;
  uint8_t* cursor_;
  uint8_t* limit_;
  SizeClass classes_[kClasses];
};

}  // namespace reap::guest
