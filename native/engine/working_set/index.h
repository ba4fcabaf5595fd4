// The header and the index of a working-set file (docs/working-set-format.md), read and checked
// where nobody waits for it: the tables of a set of 1 GiB take some milliseconds.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/failure.h"
#include "files/page_source.h"

namespace reap {

constexpr uint64_t kHeaderBytes = 4096;
constexpr uint16_t kMajorVersion = 2;

// The fields of a header at their places; the rest of its bytes is reserved.
struct WorkingSetHeader {
  uint8_t magic[8];
  uint16_t major_version, minor_version;
  uint32_t header_bytes;
  uint64_t file_bytes;
  uint64_t memory_bytes;
  uint32_t granule, page_size;
  uint64_t index_offset, index_bytes;
  uint64_t data_offset;
  uint32_t groups, extents, touches;
  uint32_t reserved;
  uint32_t runs;
  uint32_t manifest_bytes;
  uint64_t data_pages, zero_pages;
  uint8_t id[16];
  uint32_t index_checksum, header_checksum;
  uint32_t disks, disk_extents;
};
static_assert(sizeof(WorkingSetHeader) == 136, "as in the file");

// What is read with the header, by the size of a file: its index, which is less than a 128th of it
// where each page is by itself. Of a large set it is a part.
constexpr uint64_t first_bytes(uint64_t file_bytes) {
  return std::clamp<uint64_t>(file_bytes / 128 / 4096 * 4096, 32 << 10, 512 << 10);
}
// Of that, what a choice waits for: a read of 512 KiB takes twice as long.
constexpr uint64_t least_bytes(uint64_t file_bytes) {
  return std::min<uint64_t>(first_bytes(file_bytes), 128 << 10);
}

// A rule of the format that a file breaks.
struct BrokenRule {
  const char* check = nullptr;  // its name there, in static storage; null: none is broken
  uint64_t offset = 0;          // in the file
  const char* what = "";        // static storage
};

struct WorkingSetIndex {
  bool is_regular = false;  // else there is nothing here
  uint64_t file_bytes = 0;
  FileStamp stamp{};            // before anything was read
  std::vector<uint8_t> header;  // shorter than a header where the file is
  std::vector<uint8_t> index;  // as long as the header says; shorter where the file ends, and empty
                               // where the header is damaged or no index is so long
  // Of the rules for the checksum of the index and its tables of groups, extents and touches, the
  // first that is broken, wherever there is an index. The header's own rules come before them, and
  // those for what follows the touches behind: they are src/working-set/file/decode.ts's.
  BrokenRule broken;
};

Failure read_working_set_index(const std::string& path, WorkingSetIndex* found);

// Whether these kHeaderBytes begin as a working set's do and their checksum is right. Gives the
// fields.
bool read_sealed_header(const uint8_t* bytes, WorkingSetHeader* header);

// The first broken rule of an index, as above.
BrokenRule check_index(const std::vector<uint8_t>& header, const std::vector<uint8_t>& index);

}  // namespace reap
