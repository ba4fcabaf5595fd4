// An immutable working set, read from its file or recorded.
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
  // Header of the file. A set without a file fills in only the fields that describe it: memory and
  // page size, runs, touches and disks.
  WorkingSetHeader header{};
  FileStamp stamp{};  // of the file, taken before it was read
  Plan plan;
  std::vector<Touch> touches;  // of the guest's pages, in first-touch order
  std::vector<Disk> disks;
  std::vector<Touch> disk_touches;  // disk by disk
  std::vector<uint8_t> manifest;
};

// Number of bytes that are read together with the header, by file size: the whole index if every
// page is an extent of one page, since it is then less than 1/128 of the file. For a large set, a
// part of the index.
constexpr uint64_t first_bytes(uint64_t file_bytes) {
  return std::clamp<uint64_t>(file_bytes / 128 / 4096 * 4096, 32 << 10, 512 << 10);
}

// Reads everything except the data, and checks every rule of the format except those of the
// manifest's JSON and of the data. For a broken rule the failure has its name and the offset in the
// file. The tables of a 1 GiB set take some milliseconds.
Failure read_working_set(const PageSource& file, std::shared_ptr<const WorkingSet>* found);

// Makes a set without a file. Of `disks`, only the touch counts matter.
std::shared_ptr<const WorkingSet> make_working_set(uint64_t memory_bytes, uint32_t page_size,
                                                   std::vector<Touch> touches,
                                                   std::vector<Disk> disks,
                                                   std::vector<Touch> disk_touches);

// Rules of the format, in the order in which they are checked: first the header, for a file of this
// size, then the tables.
Failure check_header(const WorkingSetHeader& header, uint64_t file_bytes);
Failure check_tables(const WorkingSet& set);

}  // namespace reap
