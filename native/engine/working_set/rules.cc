// Checks of a reader (docs/working-set-format.md), made before any number is trusted or used to
// allocate. The sentences for the check names are in src/binding/explain-file.ts.
#include <cstddef>
#include <cstring>

#include "base/page.h"
#include "base/posix.h"
#include "working_set/working_set.h"

namespace reap {

namespace {

Failure broken(const char* check, uint64_t offset, uint64_t want = 0, uint64_t got = 0) {
  Failure failure;
  failure.code = ErrorCode::working_set_invalid;
  failure.check = check;
  failure.offset = offset;
  failure.want = want;
  failure.got = got;
  return failure;
}

// Bitmap with one bit per page, for one thread. Only parts with set bits use memory.
class PageMarks {
 public:
  explicit PageMarks(uint64_t pages) : words_(Mapping::anonymous((pages + 63) / 64 * 8)) {}

  explicit operator bool() const { return static_cast<bool>(words_); }
  // Returns true if all of them were clear before.
  bool set(uint64_t first, uint64_t end) {
    uint64_t before = 0;
    each(first, end, [&before](uint64_t& word, uint64_t mask) {
      before |= word & mask;
      word |= mask;
    });
    return before == 0;
  }
  // Clears the bit, and returns whether it was set.
  bool take(uint64_t page) {
    uint64_t& word = reinterpret_cast<uint64_t*>(words_.data())[page / 64];
    const uint64_t bit = uint64_t{1} << (page % 64);
    const bool was_set = word & bit;
    word &= ~bit;
    return was_set;
  }

 private:
  template <typename Change>
  void each(uint64_t first, uint64_t end, Change change) {
    while (first < end) {
      const uint64_t in_word = std::min<uint64_t>(64 - first % 64, end - first);
      const uint64_t run = in_word == 64 ? ~uint64_t{0} : (uint64_t{1} << in_word) - 1;
      change(reinterpret_cast<uint64_t*>(words_.data())[first / 64], run << (first % 64));
      first += in_word;
    }
  }

  Mapping words_;
};

// Checks the tables of a set whose header is valid and gives their sizes.
class Tables {
 public:
  explicit Tables(const WorkingSet& set)
      : set_(set),
        header_(set.header),
        step_(header_.page_size / kPage),
        memory_pages_(header_.memory_bytes / kPage),
        extents_at_(kHeaderBytes + header_.groups * sizeof(PlanGroup)),
        touches_at_(extents_at_ + header_.extents * sizeof(PlanExtent)),
        disk_touches_at_(touches_at_ + header_.touches * sizeof(Touch)),
        disks_at_(disk_touches_at_ + header_.disk_touches * sizeof(Touch)),
        covered_(memory_pages_) {}

  Failure check() {
    if (!covered_) return failed_call(ErrorCode::working_set_io, -ENOMEM, "mmap");
    for (uint64_t i = 0; step_ > 1 && i < set_.touches.size(); ++i) {
      if (set_.touches[i].page % step_ != 0) {
        return broken("touch-page", touches_at_ + i * sizeof(Touch));
      }
    }
    if (Failure failure = check_groups()) return failure;
    covered_ = PageMarks(0);  // what a hostile file makes it use goes before the disks' comes
    return check_disks();
  }

 private:
  // Groups must be contiguous in extents, data and ranks.
  Failure check_groups() {
    uint64_t first_extent = 0, zero_pages = 0, data = header_.data_offset;
    const uint64_t ranks = set_.touches.size() * step_;
    rank_ = 0;
    for (uint64_t i = 0; i < set_.plan.groups.size(); ++i) {
      const PlanGroup& group = set_.plan.groups[i];
      const uint64_t at = kHeaderBytes + i * sizeof(PlanGroup);
      const uint64_t end_extent = first_extent + group.extent_count;
      if (group.data_offset != data) return broken("group-data", at);
      if (group.data_bytes % kPage != 0 || group.data_bytes > kMaxGroupBytes) {
        return broken("group-data", at + 8);
      }
      if (group.first_extent != first_extent || group.extent_count == 0 ||
          end_extent > set_.plan.extents.size()) {
        return broken("group-extents", at + 12);
      }
      if (group.first_rank != rank_) return broken("group-rank", at + 24);
      if (group.reserved != 0) return broken("reserved", at + 28);

      uint64_t pages = 0, data_pages = 0;
      if (Failure failure = check_extents(first_extent, end_extent, &pages, &data_pages)) {
        return failure;
      }
      if (pages > kMaxGroupPages) return broken("group-pages", at + 16);
      if (data_pages * kPage != group.data_bytes) return broken("group-data", at + 8);
      if (rank_ + pages > ranks) return broken("group-rank", at + 24);
      if (Failure failure = check_pages(first_extent, end_extent, pages)) return failure;
      zero_pages += pages - data_pages;
      rank_ += pages;
      data += group.data_bytes;
      first_extent = end_extent;
    }
    if (first_extent != set_.plan.extents.size()) return broken("extent-count", 68);
    if (rank_ != ranks || zero_pages != header_.zero_pages) return broken("page-count", 88);
    return {};
  }

  // Checks the extents of one group and their order; no other extent may have the same pages.
  Failure check_extents(uint64_t first_extent, uint64_t end_extent, uint64_t* pages,
                        uint64_t* data_pages) {
    uint64_t next_page = 0;
    for (uint64_t i = first_extent; i < end_extent; ++i) {
      const PlanExtent& extent = set_.plan.extents[i];
      const uint64_t at = extents_at_ + i * sizeof(PlanExtent);
      const uint64_t end = uint64_t{extent.first_page} + extent.page_count;
      if (extent.first_page < next_page) return broken("extent-order", at);
      if (extent.page_count == 0 || end > memory_pages_) return broken("extent-pages", at);
      if (extent.flags > kZeroExtent) return broken("extent-flags", at + 12);
      if (!covered_.set(extent.first_page, end)) return broken("extent-overlap", at);
      *pages += extent.page_count;
      if (extent.flags != kZeroExtent) *data_pages += extent.page_count;
      next_page = end;
    }
    return {};
  }

  // The extents of a group must have exactly the pages of its ranks, and each the rank of one of
  // its pages.
  Failure check_pages(uint64_t first_extent, uint64_t end_extent, uint64_t pages) {
    // As many touches as the extents have pages: either each page is taken once, or one is left.
    for (uint64_t rank = rank_; rank < rank_ + pages; ++rank) {
      const uint64_t page = page_at(rank);
      if (page >= memory_pages_ || !covered_.take(page)) {
        return broken("extent-touches", touches_at_ + rank / step_ * sizeof(Touch));
      }
    }
    for (uint64_t i = first_extent; i < end_extent; ++i) {
      const PlanExtent& extent = set_.plan.extents[i];
      if (!covered_.set(extent.first_page, uint64_t{extent.first_page} + extent.page_count)) {
        return broken("extent-touches", touches_at_ + rank_ / step_ * sizeof(Touch));
      }
      const bool is_of_group = extent.rank >= rank_ && extent.rank - rank_ < pages;
      if (is_of_group && page_at(extent.rank) - extent.first_page < extent.page_count) continue;
      return broken("extent-rank", extents_at_ + i * sizeof(PlanExtent));
    }
    return {};
  }

  uint64_t page_at(uint64_t rank) const {
    return uint64_t{set_.touches[rank / step_].page} + rank % step_;
  }

  Failure check_disks() const {
    uint64_t first_touch = 0;
    for (uint64_t i = 0; i < set_.disks.size(); ++i) {
      const Disk& disk = set_.disks[i];
      const uint64_t at = disks_at_ + i * sizeof(Disk);
      if (Failure failure = check_disk(disk, at, i)) return failure;
      if (disk.touches > set_.disk_touches.size() - first_touch) {
        return broken("disk-touches", at + offsetof(Disk, touches), 0, i);
      }
      if (Failure failure = check_disk_touches(disk, first_touch, i)) return failure;
      first_touch += disk.touches;
    }
    return first_touch == set_.disk_touches.size()
               ? Failure{}
               : broken("disk-touches", offsetof(WorkingSetHeader, disk_touches));
  }

  static uint64_t pages_of(const Disk& disk) { return (disk.bytes + kPage - 1) / kPage; }

  Failure check_disk(const Disk& disk, uint64_t at, uint64_t number) const {
    const auto refuse = [&](const char* check, uint64_t offset) {
      return broken(check, at + offset, 0, number);
    };
    if (disk.bytes == 0 || disk.bytes > kMaxDiskBytes) return refuse("disk-bytes", 0);
    if (disk.sample_count > kMaxDiskSamples || (disk.sample_count == 0 && disk.touches > 0)) {
      return refuse("disk-samples", offsetof(Disk, sample_count));
    }
    for (uint32_t i = 0; i < kMaxDiskSamples; ++i) {
      const Disk::Sample& sample = disk.samples[i];
      const uint64_t offset = offsetof(Disk, samples) + i * sizeof sample;
      if (i < disk.sample_count) {
        if (sample.page >= pages_of(disk)) return refuse("disk-samples", offset);
      } else if (sample.page != 0 || sample.checksum != 0) {
        return refuse("reserved", offset);
      }
    }
    if (disk.name_bytes == 0 || disk.name_bytes > kMaxNameBytes) {
      return refuse("disk-name", offsetof(Disk, name_bytes));
    }
    if (disk.reserved != 0) return refuse("reserved", offsetof(Disk, reserved));
    for (uint32_t i = 0; i < sizeof disk.name; ++i) {
      const bool is_of_name = i < disk.name_bytes;
      if (is_of_name && (disk.name[i] == '/' || disk.name[i] == 0)) {
        return refuse("disk-name", offsetof(Disk, name));
      }
      if (!is_of_name && disk.name[i] != 0) return refuse("reserved", offsetof(Disk, name) + i);
    }
    return {};
  }

  // Touches must lie in the disk and be in the order of their times, and no page may be touched
  // twice.
  Failure check_disk_touches(const Disk& disk, uint64_t first, uint64_t number) const {
    PageMarks touched(pages_of(disk));
    if (!touched) return failed_call(ErrorCode::working_set_io, -ENOMEM, "mmap");
    uint32_t time = 0;
    for (uint64_t i = first; i < first + disk.touches; ++i) {
      const Touch& touch = set_.disk_touches[i];
      const uint64_t at = disk_touches_at_ + i * sizeof touch;
      if (touch.page >= pages_of(disk)) return broken("disk-touch-page", at, 0, number);
      if (touch.time_us < time) return broken("disk-touch-order", at + 4, 0, number);
      if (!touched.set(touch.page, uint64_t{touch.page} + 1)) {
        return broken("disk-touch-twice", at, 0, number);
      }
      time = touch.time_us;
    }
    return {};
  }

  const WorkingSet& set_;
  const WorkingSetHeader& header_;
  const uint64_t step_;  // 4 KiB pages per guest page
  const uint64_t memory_pages_;
  const uint64_t extents_at_;
  const uint64_t touches_at_;
  const uint64_t disk_touches_at_;
  const uint64_t disks_at_;
  PageMarks covered_;  // by the extents checked so far
  uint64_t rank_ = 0;  // of the first page of that group
};

}  // namespace

Failure check_header(const WorkingSetHeader& h, uint64_t file_bytes) {
  const uint64_t tables = uint64_t{h.groups} * sizeof(PlanGroup) +
                          uint64_t{h.extents} * sizeof(PlanExtent) +
                          (uint64_t{h.touches} + h.disk_touches) * sizeof(Touch) +
                          uint64_t{h.disks} * sizeof(Disk) + h.manifest_bytes;
  const uint64_t memory_pages = h.memory_bytes / kPage;
  const bool has_page_size = h.page_size == kPage || h.page_size == kHugePage;
  if (h.header_bytes != kHeaderBytes) return broken("header-bytes", 12, kHeaderBytes);
  if (h.granule != kPage) return broken("granule", 32, kPage, h.granule);
  if (!has_page_size) return broken("page-size", 36, 0, h.page_size);
  if (h.memory_bytes == 0 || memory_pages > kMaxMemoryPages || h.memory_bytes % h.page_size != 0) {
    return broken("memory-bytes", 24, 0, h.memory_bytes);
  }
  if (file_bytes < h.file_bytes) return broken("truncated", file_bytes, h.file_bytes, file_bytes);
  if (file_bytes != h.file_bytes) return broken("file-bytes", 16, h.file_bytes, file_bytes);
  if (h.index_offset != kHeaderBytes) return broken("index-offset", 40, kHeaderBytes);
  if (h.written_touches > uint64_t{h.touches} + 1) return broken("written-touches", 76);
  if (h.runs == 0) return broken("runs", 80);
  if (h.manifest_bytes > kMaxManifestBytes) return broken("manifest-bytes", 84, kMaxManifestBytes);
  if (h.disks > kMaxDisks) return broken("disk-count", 128, kMaxDisks, h.disks);
  if (h.index_bytes > kMaxIndexBytes || h.index_bytes != tables) {
    return broken("index-bytes", 48, tables, h.index_bytes);
  }
  if (h.data_offset % kPage != 0 || h.data_offset < kHeaderBytes + h.index_bytes ||
      h.data_offset > file_bytes || h.data_pages != (file_bytes - h.data_offset) / kPage ||
      file_bytes % kPage != 0) {
    return broken("data-offset", 56);
  }
  const uint64_t pages = uint64_t{h.touches} * (h.page_size / kPage);
  // The last comparison bounds the size of the bitmaps that check the tables.
  if (h.zero_pages > pages || h.data_pages != pages - h.zero_pages || pages > memory_pages) {
    return broken("page-count", 88);
  }
  return {};
}

Failure check_tables(const WorkingSet& set) { return Tables(set).check(); }

}  // namespace reap
