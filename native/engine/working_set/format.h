// Layout of a working-set file (docs/working-set-format.md), which no other C++ file knows. Page
// numbers and counts are in 4 KiB pages.
#pragma once

#include <cstdint>

#include "base/page.h"

namespace reap {

constexpr uint64_t kHeaderBytes = 4096;
constexpr uint16_t kMajorVersion = 3;
constexpr uint16_t kMinorVersion = 0;

constexpr uint64_t kMaxMemoryPages = uint64_t{1} << 30;
constexpr uint64_t kMaxGroupBytes = 1 << 20;
constexpr uint64_t kMaxGroupPages = 4096;
constexpr uint64_t kMaxIndexBytes = 1 << 28;  // limit for what a file can make a reader allocate
constexpr uint32_t kMaxManifestBytes = 1 << 16;
constexpr uint32_t kMaxDisks = 16;
constexpr uint64_t kMaxDiskBytes = uint64_t{1} << 42;
constexpr uint32_t kMaxDiskSamples = 16;
constexpr uint32_t kMaxNameBytes = 255;

// Fields of a header at their offsets; its remaining bytes are reserved.
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
  uint32_t written_touches;  // number of written touches + 1; 0 if unknown
  uint32_t runs;
  uint32_t manifest_bytes;
  uint64_t data_pages, zero_pages;
  uint8_t id[16];
  uint32_t index_checksum, header_checksum;
  uint32_t disks, disk_touches;
};
static_assert(sizeof(WorkingSetHeader) == 136, "as in the file");

struct PlanGroup {
  uint64_t data_offset;
  uint32_t data_bytes;
  uint32_t first_extent;
  uint32_t extent_count;
  uint32_t checksum;  // CRC-32C of the group's data
  uint32_t first_rank;
  uint32_t reserved;
};
static_assert(sizeof(PlanGroup) == 32, "as in the file");

struct PlanExtent {
  uint32_t first_page;
  uint32_t page_count;
  uint32_t rank;
  uint32_t flags;
};
static_assert(sizeof(PlanExtent) == 16, "as in the file");
constexpr uint32_t kZeroExtent = 1;

struct Touch {
  uint32_t page;
  uint32_t time_us;
};
static_assert(sizeof(Touch) == 8, "as in the file");

struct Disk {
  uint64_t bytes;
  uint32_t touches;
  uint32_t sample_count;
  struct Sample {
    uint32_t page;
    uint32_t checksum;
  } samples[kMaxDiskSamples];
  uint32_t name_bytes;
  uint32_t reserved;
  char name[360];
};
static_assert(sizeof(Disk) == 512, "as in the file");

}  // namespace reap
