#include "working_set/comparison.h"

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"
#include "base/page.h"
#include "base/posix.h"

namespace reap {

namespace {

// Groups whose pages of the memory file are requested ahead of the comparison. The working-set file
// is read front to back, where the kernel reads ahead by itself.
constexpr size_t kGroupsAhead = 4;
// Pages of a zero extent per read.
constexpr uint32_t kZerosAtOnce = 64;

bool is_zero(const uint8_t* bytes, uint64_t length) {
  return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, length - 1) == 0;
}

class Comparer {
 public:
  Comparer(const Plan& plan, const PageSource& working_set, const PageSource& memory_file,
           Comparison* result)
      : plan_(plan), working_set_(working_set), memory_file_(memory_file), result_(*result) {}

  // Both buffers lie in one huge page if available.
  bool reserve() {
    buffers_ = Mapping::buffer(2 * kMaxGroupBytes);
    if (!buffers_) return false;
    stored_ = buffers_.data();
    found_ = stored_ + kMaxGroupBytes;
    return true;
  }

  bool compare_group(size_t index) {
    const PlanGroup& group = plan_.groups[index];
    group_ = index;
    if (waits_) ask_ahead();
    if (!read_stored(group)) return false;
    const uint8_t* stored = stored_;
    return for_each_extent(group, [&](const PlanExtent& extent) {
      if (extent.flags & kZeroExtent) return compare_zeros(extent);
      if (!compare_pages(extent.first_page, extent.page_count, stored)) return false;
      stored += extent.page_count * kPage;
      return true;
    });
  }

 private:
  template <typename Each>
  bool for_each_extent(const PlanGroup& group, const Each& each) const {
    const PlanExtent* extents = plan_.extents.data() + group.first_extent;
    return std::all_of(extents, extents + group.extent_count, each);
  }

  void ask_ahead() {
    asked_for_ = std::max(asked_for_, group_);
    for (; asked_for_ < std::min(group_ + kGroupsAhead, plan_.groups.size()); ++asked_for_) {
      for_each_extent(plan_.groups[asked_for_], [&](const PlanExtent& extent) {
        memory_file_.will_need(extent.first_page * kPage, extent.page_count * kPage);
        return true;
      });
    }
  }

  // Copies pages from the page cache; from the first missing page on, requests readahead. To
  // request cached pages too would take a sixth of the comparison's time.
  PageSource::Result read_found(uint64_t offset, uint64_t length) {
    if (!waits_) {
      const auto read = memory_file_.read_cached(offset, found_, length);
      if (read.read != PageSource::Read::would_block) return read;
      waits_ = true;
      ask_ahead();
    }
    return memory_file_.read(offset, found_, length);
  }

  bool read_stored(const PlanGroup& group) {
    const auto read = working_set_.read(group.data_offset, stored_, group.data_bytes);
    if (read.read == PageSource::Read::failed) {
      result_.failure = read_failure(ErrorCode::working_set_io, read, group.data_offset);
    } else if (read.read != PageSource::Read::done) {
      result_.failure = read_failure(ErrorCode::working_set_invalid, read, group.data_offset);
    } else if (crc32c(stored_, group.data_bytes) != group.checksum) {
      result_.failure.code = ErrorCode::working_set_invalid;
      result_.failure.check = "group-checksum";
      result_.failure.offset = group.data_offset;
    }
    return !result_.failure;
  }

  bool compare_zeros(const PlanExtent& extent) {
    const uint64_t offset = extent.first_page * kPage;
    const uint64_t length = extent.page_count * kPage;
    if (memory_file_.data_map(memory_file_.refreshed_stamp()).hole_end(offset) >= offset + length) {
      result_.pages += extent.page_count;
      return true;
    }
    for (uint32_t done = 0; done < extent.page_count;) {
      const uint32_t count = std::min(kZerosAtOnce, extent.page_count - done);
      if (!compare_pages(extent.first_page + done, count, nullptr)) return false;
      done += count;
    }
    return true;
  }

  // Compares with zeros if `stored` is null.
  bool compare_pages(uint32_t first_page, uint32_t count, const uint8_t* stored) {
    const uint64_t length = count * kPage;
    const auto read = read_found(first_page * kPage, length);
    if (read.read != PageSource::Read::done) {
      result_.failure = read_failure(ErrorCode::source_read, read, first_page * kPage);
      return false;
    }
    result_.pages += count;
    const auto is_same = [&](uint64_t offset, uint64_t bytes) {
      const uint8_t* found = found_ + offset;
      return stored ? std::memcmp(found, stored + offset, bytes) == 0 : is_zero(found, bytes);
    };
    if (is_same(0, length)) return true;
    for (uint32_t i = 0; i < count; ++i) {
      if (is_same(i * kPage, kPage)) continue;
      ++result_.mismatched_pages;
      if (result_.mismatches.size() < Comparison::kMaxMismatches) {
        result_.mismatches.push_back(first_page + i);
      }
    }
    return true;
  }

  const Plan& plan_;
  const PageSource& working_set_;
  const PageSource& memory_file_;
  Comparison& result_;
  Mapping buffers_;
  uint8_t* stored_ = nullptr;
  uint8_t* found_ = nullptr;
  size_t group_ = 0;      // being compared
  size_t asked_for_ = 0;  // number of groups requested ahead
  bool waits_ = false;    // a page was missing from the page cache
};

}  // namespace

void compare(const Plan& plan, const PageSource& working_set, const PageSource& memory_file,
             const std::atomic<bool>& stop, const std::function<void(uint64_t)>& on_progress,
             Comparison* result) {
  Comparer comparer(plan, working_set, memory_file, result);
  if (!comparer.reserve()) {
    result->failure = failed_call(ErrorCode::working_set_io, -ENOMEM, "mmap");
    return;
  }
  for (size_t i = 0; i < plan.groups.size() && !stop; ++i) {
    if (!comparer.compare_group(i)) return;
    on_progress(result->pages);
  }
}

}  // namespace reap
