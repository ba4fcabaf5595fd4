// Sizes of pages.
#pragma once

#include <cstdint>

namespace reap {

constexpr uint64_t kPage = 4096;  // of tables and of the page cache, whatever the guest's are
constexpr uint64_t kHugePage = 2 << 20;  // of hugetlb guests; the largest there is

}  // namespace reap
