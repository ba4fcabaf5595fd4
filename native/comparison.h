// Compares every page of a working set with its memory file: the only way to find out on a host
// that a set of elsewhere, or one whose files have been touched, still holds the memory file's
// bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "failure.h"
#include "page_source.h"
#include "plan.h"

namespace reap {

struct Comparison {
  static constexpr size_t kMaxMismatches = 16;

  uint64_t pages = 0;  // compared, zero extents included
  uint64_t mismatched_pages = 0;
  std::vector<uint32_t> mismatches;  // the first of them, in the order of the file
  Failure failure;                   // why it ended early, unless `stop` was set
};

// Compares group by group. `on_progress` hears of the pages after each.
void compare(const Plan& plan, const PageSource& working_set, const PageSource& memory_file,
             const std::atomic<bool>& stop, const std::function<void(uint64_t)>& on_progress,
             Comparison* result);

}  // namespace reap
