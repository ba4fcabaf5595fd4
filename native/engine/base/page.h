// Page sizes.
#pragma once

#include <cstdint>

namespace reap {

constexpr uint64_t kPage =
    4096;  // granule of tables and of the page cache, whatever the guest's page size
constexpr uint64_t kHugePage = 2 << 20;  // of hugetlb guests; the largest supported

}  // namespace reap
