// Which pages of a file other processes have in their page tables, as /proc tells.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/page.h"
#include "base/posix.h"

namespace reap {

// A process's mapping of a part of a file.
struct FileMapping {
  pid_t pid = 0;
  uint64_t address = 0;
  uint64_t bytes = 0;
  uint64_t offset = 0;  // in the file
};

// The mappings that other processes have of the file that this process maps at `view`. Processes of
// other users are left out where /proc does not show them.
std::vector<FileMapping> mappings_of(const void* view);

// A process's page table. A page of a mapped file is in it once the process has touched that page,
// or, with a read, one of the 15 that lie in the same 64 KiB (fault-around), if it was in the page
// cache then.
class PageTable {
 public:
  // 0 or a negative errno: EACCES or EPERM where the process may not be traced (ptrace(2)).
  int open(pid_t pid);
  // Calls `found(page)`, the number of a page in the file, for each that is in the table. 0 or a
  // negative errno; nothing is found of a process that has ended.
  template <typename Found>
  int each(const FileMapping& mapping, Found&& found) {
    uint64_t entries[kEntries];
    const uint64_t pages = mapping.bytes / kPage;
    for (uint64_t page = 0; page < pages; page += kEntries) {
      const int count = read(mapping.address / kPage + page, pages - page, entries);
      if (count <= 0) return count;
      for (int i = 0; i < count; ++i) {
        // Present, or in swap (Documentation/admin-guide/mm/pagemap.rst).
        if (entries[i] >> 62) found(mapping.offset / kPage + page + static_cast<uint64_t>(i));
      }
    }
    return 0;
  }

 private:
  static constexpr uint64_t kEntries = 2048;

  // How many entries there were, or a negative errno.
  int read(uint64_t first_page, uint64_t pages, uint64_t* entries) const;

  UniqueFd fd_;
};

}  // namespace reap
