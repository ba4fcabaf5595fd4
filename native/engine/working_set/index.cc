#include "working_set/index.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/crc32c.h"
#include "base/posix.h"
#include "working_set/plan.h"

namespace reap {

namespace {

constexpr uint64_t kMostIndexBytes = 1 << 28;  // what a reader may be made to allocate
constexpr uint64_t kMostGroupPages = 4096;
constexpr uint64_t kHugePageBytes = 2 << 20;

struct Touch {
  uint32_t page;
  uint32_t time_us;
};
static_assert(sizeof(Touch) == 8, "as in the file");

// A table of an index. `offset` is in the file.
template <typename Entry>
class Table {
 public:
  Table(const std::vector<uint8_t>& index, uint64_t offset, uint64_t count)
      : index_(index), offset_(offset), count_(count) {}
  uint64_t size() const { return count_; }
  Entry operator[](uint64_t i) const {
    Entry entry;
    std::memcpy(&entry, index_.data() + (offset(i) - kHeaderBytes), sizeof entry);
    return entry;
  }
  uint64_t offset(uint64_t i) const { return offset_ + i * sizeof(Entry); }
  uint64_t end() const { return offset(count_); }

 private:
  const std::vector<uint8_t>& index_;
  uint64_t offset_;
  uint64_t count_;
};

class Checker {
 public:
  Checker(const WorkingSetHeader& header, const std::vector<uint8_t>& index)
      : memory_bytes_(header.memory_bytes),
        page_size_(header.page_size),
        index_bytes_(header.index_bytes),
        data_offset_(header.data_offset),
        zero_pages_(header.zero_pages),
        checksum_(header.index_checksum),
        index_(index),
        groups_(index, kHeaderBytes, header.groups),
        extents_(index, groups_.end(), header.extents),
        touches_(index, extents_.end(), header.touches) {}

  BrokenRule check() {
    step_ = page_size_ / kPlanPage;
    // The last bounds the work.
    const bool has_room = index_.size() == index_bytes_ &&
                          touches_.end() <= kHeaderBytes + index_bytes_ &&
                          (page_size_ == kPlanPage || page_size_ == kHugePageBytes) &&
                          touches_.size() * step_ <= memory_bytes_ / kPlanPage;
    if (!has_room) return {"index-bytes", 48, "its index has no room for its tables"};
    if (crc32c(index_.data(), index_.size()) != checksum_) {
      return {"index-checksum", 120, "the checksum of its index is wrong"};
    }
    BrokenRule broken = check_touches();
    if (!broken.check) broken = check_groups();
    if (!broken.check) broken = check_overlap();
    return broken;
  }

 private:
  // That they are in the memory follows from the extents.
  BrokenRule check_touches() const {
    for (uint64_t i = 0; step_ > 1 && i < touches_.size(); ++i) {
      if (touches_[i].page % step_ != 0) {
        return {"touch-page", touches_.offset(i), "there begins no page of the guest"};
      }
    }
    return {};
  }

  // That groups follow each other in extents, data and ranks, and that the extents of each are made
  // of the very pages of its ranks.
  BrokenRule check_groups() {
    uint64_t first_extent = 0, rank = 0, zero_pages = 0, data = data_offset_;
    const uint64_t ranks = touches_.size() * step_;
    for (uint64_t i = 0; i < groups_.size(); ++i) {
      const PlanGroup group = groups_[i];
      const uint64_t at = groups_.offset(i);
      const uint64_t end_extent = first_extent + group.extent_count;
      if (group.data_offset != data) {
        return {"group-data", at, "the data of a group does not follow that of the one before"};
      }
      if (group.data_bytes % kPlanPage != 0 || group.data_bytes > kMostGroupBytes) {
        return {"group-data", at + 8, "a group has more than 1 MiB of data or part of a page"};
      }
      if (group.first_extent != first_extent || group.extent_count == 0 ||
          end_extent > extents_.size()) {
        return {"group-extents", at + 12, "the extents of a group are not the next ones"};
      }
      if (group.first_rank != rank) {
        return {"group-rank", at + 24, "the first rank is not the number of pages before"};
      }
      if (group.reserved != 0) return {"reserved", at + 28, "a reserved field is not zero"};

      uint64_t data_pages = 0;
      const uint64_t first_rank = rank;
      const BrokenRule broken =
          check_extents(first_extent, end_extent, &rank, &data_pages, &zero_pages);
      if (broken.check) return broken;
      if (rank - first_rank > kMostGroupPages) {
        return {"group-pages", at + 16, "a group has more than 4096 pages"};
      }
      if (data_pages * kPlanPage != group.data_bytes) {
        return {"group-data", at + 8, "a group has not the data that its extents need"};
      }
      if (rank > ranks) {
        return {"group-rank", at + 24, "there are more pages in groups than touched"};
      }
      const BrokenRule other = check_pages(first_extent, end_extent, first_rank, rank);
      if (other.check) return other;
      data += group.data_bytes;
      first_extent = end_extent;
    }
    if (first_extent != extents_.size()) return {"extent-count", 68, "extents are in no group"};
    if (rank != ranks || zero_pages != zero_pages_) {
      return {"page-count", 88, "the groups have not the pages that the header counts"};
    }
    return {};
  }

  // Each extent of a group by itself, and their order; adds up their pages.
  BrokenRule check_extents(uint64_t first_extent, uint64_t end_extent, uint64_t* pages,
                           uint64_t* data_pages, uint64_t* zero_pages) const {
    uint64_t next_page = 0;
    for (uint64_t i = first_extent; i < end_extent; ++i) {
      const PlanExtent extent = extents_[i];
      const uint64_t at = extents_.offset(i);
      const uint64_t end = uint64_t{extent.first_page} + extent.page_count;
      if (extent.first_page < next_page) {
        return {"extent-order", at, "extents are not in order"};
      }
      if (extent.page_count == 0 || end > memory_bytes_ / kPlanPage) {
        return {"extent-pages", at, "an extent is empty or lies outside the memory"};
      }
      if (extent.flags > kZeroExtent) return {"extent-flags", at + 12, "a flag is not known"};
      *(extent.flags == kZeroExtent ? zero_pages : data_pages) += extent.page_count;
      *pages += extent.page_count;
      next_page = end;
    }
    return {};
  }

  // That a group's extents have the pages of its ranks and no others, and each a rank of its own.
  BrokenRule check_pages(uint64_t first_extent, uint64_t end_extent, uint64_t first_rank,
                         uint64_t end_rank) {
    pages_.clear();
    for (uint64_t rank = first_rank; rank < end_rank; ++rank) {
      pages_.push_back(touches_[rank / step_].page + static_cast<uint32_t>(rank % step_));
    }
    by_address_ = pages_;
    std::sort(by_address_.begin(), by_address_.end());
    auto next = by_address_.begin();
    for (uint64_t i = first_extent; i < end_extent; ++i) {
      const PlanExtent extent = extents_[i];
      const uint64_t end = uint64_t{extent.first_page} + extent.page_count;
      for (uint64_t page = extent.first_page; page < end; ++page) {
        if (*next++ != page) {
          return {"extent-touches", extents_.offset(i), "an extent has a page not touched"};
        }
      }
      const uint64_t place = uint64_t{extent.rank} - first_rank;  // wraps below the first
      if (place >= pages_.size() || pages_[place] < extent.first_page || pages_[place] >= end) {
        return {"extent-rank", extents_.offset(i), "the rank of an extent is of no page of it"};
      }
    }
    return {};
  }

  // That no page is in two extents. As the extents of each group are made of the pages of its
  // ranks, no page was touched twice then.
  BrokenRule check_overlap() const {
    std::vector<uint64_t> ranges(extents_.size());  // first page and count, to sort by the first
    for (uint64_t i = 0; i < ranges.size(); ++i) {
      ranges[i] = uint64_t{extents_[i].first_page} << 32 | extents_[i].page_count;
    }
    std::sort(ranges.begin(), ranges.end());
    uint64_t end = 0;
    for (const uint64_t range : ranges) {
      const uint64_t first = range >> 32;
      if (first < end) return overlap_at(static_cast<uint32_t>(first));
      end = first + static_cast<uint32_t>(range);
    }
    return {};
  }

  // At the last extent that begins there.
  BrokenRule overlap_at(uint32_t first_page) const {
    uint64_t last = 0;
    for (uint64_t i = 0; i < extents_.size(); ++i) {
      if (extents_[i].first_page == first_page) last = i;
    }
    return {"extent-overlap", extents_.offset(last), "a page is in two extents"};
  }

  const uint64_t memory_bytes_;
  const uint64_t page_size_;
  const uint64_t index_bytes_;
  const uint64_t data_offset_;
  const uint64_t zero_pages_;
  const uint32_t checksum_;
  const std::vector<uint8_t>& index_;
  const Table<PlanGroup> groups_;
  const Table<PlanExtent> extents_;
  const Table<Touch> touches_;
  uint64_t step_ = 1;
  // Of one group; here so that they are allocated once.
  std::vector<uint32_t> pages_;
  std::vector<uint32_t> by_address_;
};

// As long as the file goes on. A negative errno, or 0.
int read_upto(int fd, uint64_t offset, uint64_t length, std::vector<uint8_t>* bytes) {
  bytes->resize(length);
  const int64_t done = read_whole(fd, offset, bytes->data(), length);
  if (done < 0) return static_cast<int>(done);
  bytes->resize(static_cast<uint64_t>(done));
  return 0;
}

}  // namespace

bool read_sealed_header(const uint8_t* bytes, WorkingSetHeader* header) {
  std::memcpy(header, bytes, sizeof *header);
  if (std::memcmp(header->magic, "REAPWSET", sizeof header->magic) != 0) return false;
  uint8_t unsealed[kHeaderBytes];
  std::memcpy(unsealed, bytes, sizeof unsealed);
  std::memset(unsealed + offsetof(WorkingSetHeader, header_checksum), 0,
              sizeof header->header_checksum);
  return crc32c(unsealed, sizeof unsealed) == header->header_checksum;
}

BrokenRule check_index(const std::vector<uint8_t>& header, const std::vector<uint8_t>& index) {
  if (header.size() < kHeaderBytes) return {"truncated", header.size(), "it ends there"};
  WorkingSetHeader fields;
  std::memcpy(&fields, header.data(), sizeof fields);
  return Checker(fields, index).check();
}

Failure read_working_set_index(const std::string& path, WorkingSetIndex* found) {
  const auto failed = [](const char* syscall, int err, uint64_t offset = 0) {
    return failed_call(ErrorCode::working_set_io, err, syscall, offset);
  };
  // Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) return failed("open", -errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return failed("fstat", -errno);
  found->is_regular = S_ISREG(status.st_mode);
  if (!found->is_regular) return {};
  found->stamp = stamp_of(status);
  found->file_bytes = static_cast<uint64_t>(status.st_size);

  // No reading ahead into the data, which is read past the page cache.
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_RANDOM);
  const auto will_need = [&file](uint64_t offset, uint64_t length) {
    if (length == 0) return;  // that means: up to the end of the file
    ::posix_fadvise(file.get(), static_cast<off_t>(offset), static_cast<off_t>(length),
                    POSIX_FADV_WILLNEED);
  };
  // In two parts: a read of the header need not wait for all.
  const uint64_t least = least_bytes(found->file_bytes);
  will_need(0, least);
  will_need(least, first_bytes(found->file_bytes) - least);
  if (const int error = read_upto(file.get(), 0, kHeaderBytes, &found->header)) {
    return failed("pread", error);
  }
  // One that grows meanwhile is as long as it was.
  if (std::min<uint64_t>(found->file_bytes, found->header.size()) < kHeaderBytes) return {};
  // What any bytes say is not allocated.
  WorkingSetHeader header;
  if (!read_sealed_header(found->header.data(), &header)) return {};
  if (header.index_bytes > kMostIndexBytes) return {};
  const uint64_t index_bytes = std::min(header.index_bytes, found->file_bytes - kHeaderBytes);
  will_need(kHeaderBytes, index_bytes);
  if (const int error = read_upto(file.get(), kHeaderBytes, index_bytes, &found->index)) {
    return failed("pread", error, kHeaderBytes);
  }
  found->broken = check_index(found->header, found->index);
  return {};
}

}  // namespace reap
