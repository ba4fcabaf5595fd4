// Buffers for fetched groups, of the whole process: JavaScript worker threads have an engine each,
// and share the memory for them.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "base/posix.h"

namespace reap {

// A buffer that returns to the pool when its last owner lets go of it.
using Buffer = std::shared_ptr<Mapping>;

class BufferPool {
 public:
  // For the fetched units of all restores together: before their VMMs connect, and ahead of the
  // workers.
  static constexpr size_t kBuffers = 24;
  static constexpr auto kIdle = std::chrono::seconds(1);

  static BufferPool& shared();

  // Null if all are in use.
  Buffer take();
  // Returns the memory of free buffers to the kernel if none was taken or returned for kIdle. False
  // if there is still some to return.
  bool return_idle();
  size_t free_count();

 private:
  using Clock = std::chrono::steady_clock;
  void give(Mapping* buffer);

  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Mapping>> free_;
  size_t made_ = 0;
  bool is_resident_ = false;  // free buffers may have memory
  Clock::time_point last_used_{};
};

}  // namespace reap
