// A working set as it is read from its file, or as it was recorded. It does not change.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/failure.h"
#include "files/page_source.h"
#include "working_set/format.h"
#include "working_set/plan.h"

namespace reap {

struct WorkingSet {
  // Of the file. A set in no file has the fields that say what it is of: memory and page size,
  // runs, touches and disks.
  WorkingSetHeader header{};
  FileStamp stamp{};  // of the file before it was read
  Plan plan;
  std::vector<Touch> touches;  // of the guest's pages, in first-touch order
  std::vector<Disk> disks;
  std::vector<Touch> disk_touches;  // those of the first disk, of the second, …
  std::vector<uint8_t> manifest;

  bool is_in_file() const { return header.file_bytes > 0; }
};

// What is read with the header, by the size of a file: its index, which is less than a 128th of it
// where each page is by itself. Of a large set it is a part.
constexpr uint64_t first_bytes(uint64_t file_bytes) {
  return std::clamp<uint64_t>(file_bytes / 128 / 4096 * 4096, 32 << 10, 512 << 10);
}

// Reads all but the data, and checks every rule of the format but those of the manifest's JSON and
// of the data. Of a broken rule the failure has the name and the place in the file. The tables of a
// set of 1 GiB take some milliseconds.
Failure read_working_set(const PageSource& file, std::shared_ptr<const WorkingSet>* found);

// A set in no file. Of `disks` the numbers of touches count.
std::shared_ptr<const WorkingSet> make_working_set(uint64_t memory_bytes, uint32_t page_size,
                                                   std::vector<Touch> touches,
                                                   std::vector<Disk> disks,
                                                   std::vector<Touch> disk_touches);

// The rules of the format, in the order in which they are checked: the header by itself, for a file
// of so many bytes, and the tables.
Failure check_header(const WorkingSetHeader& header, uint64_t file_bytes);
Failure check_tables(const WorkingSet& set);

}  // namespace reap
