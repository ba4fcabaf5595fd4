// Compares every page of a working set with a memory file. Only this shows whether a copied set, or
// one whose files changed, still has the memory file's bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "base/failure.h"
#include "files/page_source.h"
#include "working_set/plan.h"

namespace reap {

struct Comparison {
  static constexpr size_t kMaxMismatches = 16;

  uint64_t pages = 0;  // compared, zero extents included
  uint64_t mismatched_pages = 0;
  std::vector<uint32_t> mismatches;  // the first mismatching pages, in file order
  Failure failure;                   // reason for an early end, unless `stop` was set
};

// Compares group by group, and calls `on_progress` with the number of compared pages after each.
void compare(const Plan& plan, const PageSource& working_set, const PageSource& memory_file,
             const std::atomic<bool>& stop, const std::function<void(uint64_t)>& on_progress,
             Comparison* result);

}  // namespace reap
