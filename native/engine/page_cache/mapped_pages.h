// Pages of a file in other processes' page tables, from /proc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/page.h"
#include "base/posix.h"

namespace reap {

// A mapping of a part of a file by a process.
struct FileMapping {
  pid_t pid = 0;
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint64_t offset = 0;  // in the file
};

// Mappings by other processes of the file that this process maps at `view`. Omits processes of
// other users if /proc hides them.
std::vector<FileMapping> mappings_of(const void* view);

// Page table of a process. It contains a page of a mapped file once the process has touched that
// page, or has read one of the 15 others in the same 64 KiB (fault-around) while the page was in
// the page cache.
class PageTable {
 public:
  // Returns 0 or a negative errno: EACCES or EPERM if the process may not be traced (ptrace(2)).
  int open(pid_t pid);
  // Calls `found(page)` with the page number in the file for each page in the table. Returns 0 or a
  // negative errno; a process that has ended has no pages.
  template <typename Found>
  int each(const FileMapping& mapping, Found&& found) {
    uint64_t entries[kEntries];
    const uint64_t pages = mapping.bytes / kPage;
    for (uint64_t page = 0; page < pages; page += kEntries) {
      const int count = read(mapping.address / kPage + page, pages - page, entries);
      if (count <= 0) return count;
      for (int i = 0; i < count; ++i) {
        // Present or swapped (Documentation/admin-guide/mm/pagemap.rst).
        if (entries[i] >> 62) found(mapping.offset / kPage + page + static_cast<uint64_t>(i));
      }
    }
    return 0;
  }

 private:
  static constexpr uint64_t kEntries = 2048;

  // Returns the number of entries, or a negative errno.
  int read(uint64_t first_page, uint64_t pages, uint64_t* entries) const;

  UniqueFd fd_;
};

}  // namespace reap
