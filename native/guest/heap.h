// Allocator of the embedded guest. It is stored inside the memory that it manages, so a snapshot of
// that memory includes it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reap::guest {

// Size classes with free lists, over chunks that are taken in a scattered order: objects that are
// allocated together are adjacent, and the rest is spread over the memory, with untouched zero
// pages in between, as in a long-running guest.
class Heap {
 public:
  // Takes over the zeroed memory at `base`, except for its first `reserved` bytes.
  void initialize(uint8_t* base, size_t memory_bytes, size_t reserved, uint64_t seed);

  // 16-byte aligned, with undefined content. Null if the memory is full.
  void* allocate(size_t bytes);
  // `bytes` must be the allocated size.
  void release(void* block, size_t bytes);

  // Bytes in chunks that are in use.
  size_t used_bytes() const { return chunks_used_ * chunk_bytes_; }

  static constexpr size_t kLargestBlock = 32 << 10;

 private:
  struct FreeBlock {
    FreeBlock* next;
  };
  struct SizeClass {
    FreeBlock* free;
    uint8_t* slab;      // next block that was never used
    uint8_t* slab_end;  // a slab holds small blocks only
  };
  // 64 bytes, then four classes per doubling, up to kLargestBlock.
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
