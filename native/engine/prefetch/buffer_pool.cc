#include "prefetch/buffer_pool.h"

#include <utility>

#include "working_set/plan.h"

namespace reap {

// Never destroyed: threads that wait for dead storage may outlive main().
BufferPool& BufferPool::shared() {
  static auto* pool = new BufferPool;
  return *pool;
}

Buffer BufferPool::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  last_used_ = Clock::now();
  std::unique_ptr<Mapping> buffer;
  if (!free_.empty()) {
    buffer = std::move(free_.back());
    free_.pop_back();
  } else if (made_ < kBuffers) {
    buffer = std::make_unique<Mapping>(Mapping::buffer(kMaxBlockBytes));
    if (!*buffer) return nullptr;
    ++made_;
  } else {
    return nullptr;
  }
  return Buffer(buffer.release(), [this](Mapping* gone) { give(gone); });
}

void BufferPool::give(Mapping* buffer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.emplace_back(buffer);
  is_resident_ = true;
  last_used_ = Clock::now();
}

bool BufferPool::return_idle() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!is_resident_) return true;
  if (Clock::now() - last_used_ < kIdle) return false;
  for (const auto& buffer : free_) buffer->release_pages();
  is_resident_ = false;
  return true;
}

size_t BufferPool::free_count() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return free_.size() + (kBuffers - made_);
}

}  // namespace reap
