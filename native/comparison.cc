#include "comparison.h"

#include <algorithm>
#include <cstring>

#include "crc32c.h"
#include "posix.h"

namespace reap {

namespace {

// Groups whose pages of the memory file are asked for ahead of the comparison. The working-set file
// is read front to back, where the kernel reads ahead by itself.
constexpr size_t kGroupsAhead = 4;
// Pages of a zero extent that are read at a time.
constexpr uint32_t kZerosAtOnce = 64;

bool is_zero(const uint8_t* bytes, uint64_t length) {
  return bytes[0] == 0 && std::memcmp(bytes, bytes + 1, length - 1) == 0;
}

class Comparer {
 public:
  Comparer(const Plan& plan, const PageSource& working_set, const PageSource& memory_file,
           Comparison* result)
      : plan_(plan), working_set_(working_set), memory_file_(memory_file), result_(*result) {}

  bool reserve() {
    stored_ = Mapping::buffer(kMostGroupBytes);
    found_ = Mapping::buffer(kMostGroupBytes);
    return stored_ && found_;
  }

  void ask_for(const PlanGroup& group) const {
    for_each_extent(group, [&](const PlanExtent& extent) {
      memory_file_.will_need(extent.first_page * kPlanPage, extent.page_count * kPlanPage);
      return true;
    });
  }

  bool compare_group(const PlanGroup& group) {
    if (!read_stored(group)) return false;
    const uint8_t* stored = stored_.data();
    return for_each_extent(group, [&](const PlanExtent& extent) {
      if (extent.flags & kZeroExtent) return compare_zeros(extent);
      if (!compare_pages(extent.first_page, extent.page_count, stored)) return false;
      stored += extent.page_count * kPlanPage;
      return true;
    });
  }

 private:
  template <typename Each>
  bool for_each_extent(const PlanGroup& group, const Each& each) const {
    const PlanExtent* extents = plan_.extents.data() + group.first_extent;
    return std::all_of(extents, extents + group.extent_count, each);
  }

  bool read_stored(const PlanGroup& group) {
    const auto read = working_set_.read(group.data_offset, stored_.data(), group.data_bytes);
    if (read.read == PageSource::Read::failed) {
      result_.failure = read_failure(ErrorCode::working_set_io, read, group.data_offset);
    } else if (read.read != PageSource::Read::done) {
      result_.failure = read_failure(ErrorCode::working_set_invalid, read, group.data_offset);
    } else if (crc32c(stored_.data(), group.data_bytes) != group.checksum) {
      result_.failure.code = ErrorCode::working_set_invalid;
      result_.failure.check = "group-checksum";
      result_.failure.offset = group.data_offset;
    }
    return !result_.failure;
  }

  bool compare_zeros(const PlanExtent& extent) {
    const uint64_t offset = extent.first_page * kPlanPage;
    const uint64_t length = extent.page_count * kPlanPage;
    if (memory_file_.hole_end(offset) >= offset + length) {
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

  // With zeros where `stored` is null.
  bool compare_pages(uint32_t first_page, uint32_t count, const uint8_t* stored) {
    const uint64_t length = count * kPlanPage;
    const auto read = memory_file_.read(first_page * kPlanPage, found_.data(), length);
    if (read.read != PageSource::Read::done) {
      result_.failure = read_failure(ErrorCode::source_read, read, first_page * kPlanPage);
      return false;
    }
    result_.pages += count;
    const auto is_same = [&](uint64_t offset, uint64_t bytes) {
      const uint8_t* found = found_.data() + offset;
      return stored ? std::memcmp(found, stored + offset, bytes) == 0 : is_zero(found, bytes);
    };
    if (is_same(0, length)) return true;
    for (uint32_t i = 0; i < count; ++i) {
      if (is_same(i * kPlanPage, kPlanPage)) continue;
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
  Mapping stored_;
  Mapping found_;
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
  size_t asked_for = 0;
  for (size_t i = 0; i < plan.groups.size() && !stop; ++i) {
    for (; asked_for < std::min(i + kGroupsAhead, plan.groups.size()); ++asked_for) {
      comparer.ask_for(plan.groups[asked_for]);
    }
    if (!comparer.compare_group(plan.groups[i])) return;
    on_progress(result->pages);
  }
}

}  // namespace reap
