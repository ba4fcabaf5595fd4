#include "heap.h"

#include "hash.h"

namespace reap::guest {

namespace {

constexpr size_t kChunks = 1024;
constexpr size_t kPage = 4096;

struct ClassOf {
  size_t index;
  size_t bytes;
};

ClassOf class_of(size_t bytes) {
  if (bytes <= 64) return {0, 64};
  const size_t last = bytes - 1;
  const unsigned doubling = 63 - static_cast<unsigned>(__builtin_clzll(last));
  const size_t quarter = (last >> (doubling - 2)) & 3;
  return {(doubling - 6) * 4 + quarter + 1, (quarter + 5) << (doubling - 2)};
}

}  // namespace

void Heap::initialize(uint8_t* base, size_t memory_bytes, size_t reserved, uint64_t seed) {
  *this = Heap{};
  base_ = base;
  chunk_bytes_ = (memory_bytes / kChunks + kPage - 1) / kPage * kPage;
  chunk_count_ = memory_bytes / chunk_bytes_ - 1;
  seed_ = seed;
  // The first chunk contains the reserved bytes; only the others are scattered.
  cursor_ = base + reserved;
  limit_ = base + chunk_bytes_;
}

void* Heap::allocate(size_t bytes) {
  if (bytes > kLargestBlock) return nullptr;
  const ClassOf fit = class_of(bytes);
  SizeClass& size_class = classes_[fit.index];
  if (FreeBlock* block = size_class.free) {
    size_class.free = block->next;
    return block;
  }
  if (fit.bytes > kLargestInSlab) return carve(fit.bytes);
  if (size_class.slab == nullptr || size_class.slab + fit.bytes > size_class.slab_end) {
    size_class.slab = carve(kSlabBytes);
    if (size_class.slab == nullptr) return nullptr;
    size_class.slab_end = size_class.slab + kSlabBytes;
  }
  uint8_t* block = size_class.slab;
  size_class.slab += fit.bytes;
  return block;
}

void Heap::release(void* block, size_t bytes) {
  SizeClass& size_class = classes_[class_of(bytes).index];
  auto* freed = static_cast<FreeBlock*>(block);
  freed->next = size_class.free;
  size_class.free = freed;
}

uint8_t* Heap::carve(size_t bytes) {
  if (cursor_ + bytes > limit_) {
    if (chunks_used_ == chunk_count_) return nullptr;
    cursor_ = base_ + (1 + Permutation(chunk_count_, seed_)[chunks_used_]) * chunk_bytes_;
    limit_ = cursor_ + chunk_bytes_;
    chunks_used_++;
  }
  uint8_t* block = cursor_;
  cursor_ += bytes;
  return block;
}

}  // namespace reap::guest
