#include "working_set/working_set.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/crc32c.h"

namespace reap {

namespace {

Failure rule(const char* check, uint64_t offset, uint64_t want = 0, uint64_t got = 0) {
  Failure failure;
  failure.code = ErrorCode::working_set_invalid;
  failure.check = check;
  failure.offset = offset;
  failure.want = want;
  failure.got = got;
  return failure;
}

// Reads the next table at `*offset` and advances it; a file that ends inside the table is
// truncated.
template <typename Entry>
Failure read_table(const PageSource& file, uint64_t* offset, uint64_t count, uint32_t* checksum,
                   std::vector<Entry>* table) {
  table->resize(count);
  const uint64_t bytes = count * sizeof(Entry);
  const PageSource::Result read = file.read(*offset, table->data(), bytes);
  if (read.read == PageSource::Read::cut_short) return rule("truncated", *offset);
  if (read.read != PageSource::Read::done) {
    return read_failure(ErrorCode::working_set_io, read, *offset);
  }
  *checksum = crc32c(reinterpret_cast<const uint8_t*>(table->data()), bytes, *checksum);
  *offset += bytes;
  return {};
}

bool has_magic(const WorkingSetHeader& header) {
  return std::memcmp(header.magic, "REAPWSET", sizeof header.magic) == 0;
}

// Copies the fields out of these kHeaderBytes. Returns true if their checksum is right.
bool decode_header(const uint8_t* bytes, WorkingSetHeader* header) {
  std::memcpy(header, bytes, sizeof *header);
  uint8_t without_checksum[kHeaderBytes];
  std::memcpy(without_checksum, bytes, sizeof without_checksum);
  std::memset(without_checksum + offsetof(WorkingSetHeader, header_checksum), 0,
              sizeof header->header_checksum);
  return crc32c(without_checksum, sizeof without_checksum) == header->header_checksum;
}

Failure read_header(const PageSource& file, WorkingSetHeader* header) {
  uint8_t bytes[kHeaderBytes] = {};
  const uint64_t length = std::min(file.bytes(), kHeaderBytes);
  const PageSource::Result read = file.read(0, bytes, length);
  if (read.read == PageSource::Read::failed) {
    return read_failure(ErrorCode::working_set_io, read, 0);
  }
  const bool is_intact = decode_header(bytes, header);
  if (!has_magic(*header)) return rule("magic", 0);
  if (length < kHeaderBytes || read.read == PageSource::Read::cut_short) {
    return rule("truncated", length, kHeaderBytes, length);
  }
  if (header->major_version != kMajorVersion || header->minor_version > kMinorVersion) {
    return rule("version", offsetof(WorkingSetHeader, major_version), 0,
                uint64_t{header->major_version} << 16 | header->minor_version);
  }
  if (!is_intact) return rule("header-checksum", offsetof(WorkingSetHeader, header_checksum));
  const uint8_t* const used = std::find_if(bytes + sizeof *header, bytes + sizeof bytes,
                                           [](uint8_t byte) { return byte != 0; });
  if (used != bytes + sizeof bytes) return rule("reserved", static_cast<uint64_t>(used - bytes));
  return check_header(*header, file.bytes());
}

}  // namespace

Failure read_working_set(const PageSource& file, std::shared_ptr<const WorkingSet>* found) {
  const auto set = std::make_shared<WorkingSet>();
  set->stamp = file.stamp();
  // No read-ahead into the data, which is read past the page cache.
  const PageSource::RandomAccess random(file);
  file.will_need(0, first_bytes(file.bytes()));
  WorkingSetHeader& header = set->header;
  if (Failure failure = read_header(file, &header)) return failure;
  file.will_need(kHeaderBytes, header.index_bytes);

  uint64_t offset = kHeaderBytes;
  uint32_t checksum = 0;
  const auto read = [&](uint64_t count, auto* table) {
    return read_table(file, &offset, count, &checksum, table);
  };
  Failure failure = read(header.groups, &set->plan.groups);
  if (!failure) failure = read(header.extents, &set->plan.extents);
  if (!failure) failure = read(header.touches, &set->touches);
  if (!failure) failure = read(header.disk_touches, &set->disk_touches);
  if (!failure) failure = read(header.disks, &set->disks);
  if (!failure) failure = read(header.manifest_bytes, &set->manifest);
  if (failure) return failure;
  if (checksum != header.index_checksum) {
    return rule("index-checksum", offsetof(WorkingSetHeader, index_checksum));
  }
  set->plan.page_size = header.page_size;
  if ((failure = check_tables(*set))) return failure;
  *found = set;
  return {};
}

std::shared_ptr<const WorkingSet> make_working_set(uint64_t memory_bytes, uint32_t page_size,
                                                   std::vector<Touch> touches,
                                                   std::vector<Disk> disks,
                                                   std::vector<Touch> disk_touches) {
  const auto set = std::make_shared<WorkingSet>();
  set->header.memory_bytes = memory_bytes;
  set->header.page_size = page_size;
  set->plan.page_size = page_size;
  set->touches = std::move(touches);
  set->disks = std::move(disks);
  set->disk_touches = std::move(disk_touches);

  // Runs of pages in address order, each with the lowest rank of its pages.
  const auto step = static_cast<uint32_t>(page_size / kPage);
  std::vector<uint32_t> by_address(set->touches.size());
  std::iota(by_address.begin(), by_address.end(), 0);
  std::sort(by_address.begin(), by_address.end(),
            [&set](uint32_t a, uint32_t b) { return set->touches[a].page < set->touches[b].page; });
  std::vector<PlanExtent>& extents = set->plan.extents;
  for (const uint32_t place : by_address) {
    const uint32_t page = set->touches[place].page;
    if (!extents.empty() && extents.back().first_page + extents.back().page_count == page) {
      extents.back().page_count += step;
      extents.back().rank = std::min(extents.back().rank, place * step);
    } else {
      extents.push_back({page, step, place * step, 0});
    }
  }
  return set;
}

}  // namespace reap
