#include "page_cache/residency.h"

#include <algorithm>

#include "files/cached_file.h"
#include "working_set/working_set.h"

namespace reap {

namespace {

// Blocks of the table of extents that are looked at, extents in a block, and pages of an extent.
// Together they cost at most a fifth of a millisecond.
constexpr uint64_t kBlocks = 16;
constexpr uint64_t kExtentsInBlock = 8;
constexpr uint64_t kPagesInLook = 32;

// Whether the table of extents and the counts are inside the file.
bool fits(const WorkingSetHeader& header, uint64_t file_bytes) {
  if (header.page_size != kPage && header.page_size != kHugePage) return false;
  if (header.index_offset > file_bytes || header.data_offset > file_bytes) return false;
  const uint64_t tables =
      header.groups * uint64_t{sizeof(PlanGroup)} + header.extents * uint64_t{sizeof(PlanExtent)};
  const uint64_t memory_pages = header.memory_bytes / kPage;
  return tables <= file_bytes - header.index_offset && header.zero_pages <= memory_pages &&
         header.data_pages <= memory_pages - header.zero_pages &&
         header.data_pages <= (file_bytes - header.data_offset) / kPage;
}

// A number below `count`, by the golden ratio: another one for each `i`.
uint64_t scattered(uint64_t i, uint64_t count) {
  return static_cast<uint32_t>(i * 0x9e3779b9) * count >> 32;
}

struct Sample {
  uint64_t pages = 0;
  uint64_t missing = 0;
};

void look_at(const CachedFile& memory, const PlanExtent& extent, uint64_t i, Sample* sample) {
  // Each page of a hidden file takes a call of its own, and a missing one is read for it.
  const uint64_t look = memory.is_visible() ? kPagesInLook : 1;
  const uint64_t count = std::min<uint64_t>(extent.page_count, look);
  const uint64_t skipped = scattered(i, extent.page_count - count + 1);
  const uint64_t there = memory.count(extent.first_page + skipped, count);
  sample->pages += extent.page_count;
  sample->missing += uint64_t{extent.page_count} * (count - std::min(count, there)) / count;
}

// Whether the table could be read.
bool take_samples(const CachedFile& memory, const CachedFile& set, const WorkingSetHeader& header,
                  Residency* found) {
  const uint64_t table = header.index_offset + uint64_t{header.groups} * sizeof(PlanGroup);
  const uint64_t all = (header.extents + kExtentsInBlock - 1) / kExtentsInBlock;
  const uint64_t blocks = std::min(all, kBlocks);
  uint64_t firsts[kBlocks];
  for (uint64_t i = 0; i < blocks; ++i) {
    // One in each part of the table, and not always at the same place of the part: the extents of
    // each group are sorted by address.
    firsts[i] = (i * all + scattered(i, all)) / blocks * kExtentsInBlock;
    const uint64_t at = table + firsts[i] * sizeof(PlanExtent);
    const uint64_t end = at + kExtentsInBlock * sizeof(PlanExtent);
    set.will_need(at / kPage, (end - 1) / kPage - at / kPage + 1);
  }
  // Pages of zeros are in the memory file as others are, or are holes, for which nothing is read.
  const bool has_holes = memory.is_sparse();
  Sample sample;
  for (uint64_t block = 0; block < blocks; ++block) {
    PlanExtent extents[kExtentsInBlock];
    const uint64_t count = std::min(kExtentsInBlock, header.extents - firsts[block]);
    const uint64_t at = table + firsts[block] * sizeof(PlanExtent);
    if (set.read(at, extents, count * sizeof(PlanExtent)) != 0) return false;
    for (uint64_t i = 0; i < count; ++i) {
      const PlanExtent& extent = extents[i];
      if (extent.page_count == 0 || (extent.flags & kZeroExtent && has_holes)) continue;
      look_at(memory, extent, block * kExtentsInBlock + i, &sample);
    }
  }
  const uint64_t read = header.data_pages + (has_holes ? 0 : header.zero_pages);
  // Nothing is known of a set all of whose samples are holes.
  found->missing_pages =
      sample.pages == 0
          ? header.data_pages
          : static_cast<uint64_t>(static_cast<double>(read) * static_cast<double>(sample.missing) /
                                  static_cast<double>(sample.pages));
  return true;
}

}  // namespace

Failure find_residency(const std::string& memory_file, const std::string& working_set,
                       Residency* found) {
  CachedFile memory;
  if (const int error = memory.open(memory_file))
    return failed_call(ErrorCode::source_read, error, "open");
  found->memory_file_bytes = memory.bytes();
  found->is_visible = memory.is_visible();
  if (working_set.empty()) return {};

  CachedFile set;
  if (const int error = set.open(working_set))
    return failed_call(ErrorCode::working_set_io, error, "open");
  // Most tables lie in what comes with the header, in one wait for the disk.
  set.will_need(0, least_bytes(set.bytes()) / kPage);
  uint8_t bytes[kHeaderBytes];
  WorkingSetHeader header{};
  if (set.read(0, bytes, sizeof bytes) != 0 || !read_sealed_header(bytes, &header) ||
      header.major_version != kMajorVersion || !fits(header, set.bytes()) ||
      !take_samples(memory, set, header, found)) {
    return {};
  }
  found->page_size = header.page_size;
  found->memory_bytes = header.memory_bytes;
  found->pages = header.data_pages + header.zero_pages;
  found->disks = header.disks;
  found->touches = header.touches;
  found->written_touches = header.written_touches;
  return {};
}

}  // namespace reap
