// Comparisons of every page of a working set with the memory file.
#include "working_set/comparison.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/page.h"
#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using reap::Comparison;
using reap::ErrorCode;
using reap::kPage;

constexpr uint64_t kPages = 512;

struct Pages {
  uint32_t first;
  uint32_t count;
  bool zero = false;
};
using Group = std::vector<Pages>;

void write_at(const std::string& path, uint64_t offset, const std::vector<uint8_t>& bytes) {
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  CHECK_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
           bytes.size());
}

fixture::Shape shape_of(const std::vector<Group>& groups, bool stored_zeros) {
  fixture::Shape shape;
  shape.region_pages = {kPages};
  for (const Group& group : groups) {
    for (const Pages& extent : group) {
      if (!extent.zero) continue;
      auto& zeros = stored_zeros ? shape.zeros : shape.holes;
      for (uint32_t i = 0; i < extent.count; ++i) zeros.push_back(extent.first + i);
    }
  }
  return shape;
}

// A memory file whose pages all differ, zero where the set says so, and a working set of it.
class Snapshot {
 public:
  explicit Snapshot(const std::vector<Group>& groups, bool stored_zeros = false)
      : memory_(directory_.path("memory")) {
    const fixture::Shape shape = shape_of(groups, stored_zeros);
    const std::vector<uint8_t> bytes = fixture::memory_bytes(shape);
    CHECK(fixture::write_memory_file(memory_, shape, bytes));
    std::vector<uint8_t> data(kPage);
    for (const Group& group : groups) add(group, bytes, &data);
    path = directory_.path("set");
    const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK_EQ(::write(file.get(), data.data(), data.size()), data.size());
  }

  const std::string& memory() const { return memory_; }

  // Changes every byte of the page.
  void change_page(uint64_t page, uint8_t value = 0x5a) const {
    write_at(memory_, page * kPage, std::vector<uint8_t>(kPage, value));
  }

  Comparison compare() const {
    const std::atomic<bool> never{false};
    return compare(never, [](uint64_t) {});
  }
  Comparison compare(
      const std::atomic<bool>& stop, const std::function<void(uint64_t)>& on_progress,
      const std::function<void()>& once_open = [] {}) const {
    reap::PageSource set;
    reap::PageSource memory;
    CHECK_EQ(set.open(path), 0);
    CHECK_EQ(memory.open(memory_), 0);
    once_open();
    Comparison result;
    reap::compare(plan, set, memory, stop, on_progress, &result);
    return result;
  }

  reap::Plan plan;
  std::string path;

 private:
  void add(const Group& pages, const std::vector<uint8_t>& bytes, std::vector<uint8_t>* data) {
    reap::PlanGroup group{};
    group.data_offset = data->size();
    group.first_extent = static_cast<uint32_t>(plan.extents.size());
    group.extent_count = static_cast<uint32_t>(pages.size());
    for (const Pages& extent : pages) {
      plan.extents.push_back({extent.first, extent.count, 0, extent.zero ? reap::kZeroExtent : 0});
      if (extent.zero) continue;
      const auto from = bytes.begin() + static_cast<long>(extent.first * kPage);
      data->insert(data->end(), from, from + static_cast<long>(extent.count * kPage));
    }
    group.data_bytes = static_cast<uint32_t>(data->size() - group.data_offset);
    group.checksum = reap::crc32c(data->data() + group.data_offset, group.data_bytes);
    plan.groups.push_back(group);
  }

  fixture::TempDir directory_;
  std::string memory_;
};

// Data and zeros alternate, out of address order; the last extent ends with the memory.
const std::vector<Group> kGroups = {
    {{40, 3}, {50, 2, true}, {60, 1}},
    {{3, 2}, {9, 1, true}},
    {{100, 200, true}},
    {{20, 4}, {400, 112}},
};
constexpr uint64_t kCompared = 325;

bool is_list(const std::vector<uint32_t>& pages, const std::vector<uint32_t>& expected) {
  return pages == expected;
}

}  // namespace

TEST(a_comparison_counts_every_page_of_an_identical_set_zeros_included) {
  for (const bool stored : {false, true}) {
    check::about = stored ? "stored zeros" : "holes";
    const Snapshot snapshot(kGroups, stored);
    const Comparison found = snapshot.compare();
    CHECK_EQ(found.failure.code, ErrorCode::none);
    CHECK_EQ(found.pages, kCompared);
    CHECK_EQ(found.mismatched_pages, 0);
    CHECK(found.mismatches.empty());
  }
}

TEST(a_comparison_of_a_set_without_pages_finds_nothing) {
  const Snapshot snapshot({});
  const Comparison found = snapshot.compare();
  CHECK_EQ(found.failure.code, ErrorCode::none);
  CHECK_EQ(found.pages, 0);
}

TEST(a_comparison_finds_each_page_that_differs_and_no_neighbour) {
  struct Row {
    const char* name;
    std::vector<uint32_t> changed;
    std::vector<uint32_t> found;  // in file order
  };
  const Row rows[] = {
      {"the first page of an extent", {40}, {40}},
      {"the middle of an extent", {41}, {41}},
      {"the last page of an extent", {42}, {42}},
      {"the last page of the memory", {511}, {511}},
      {"a zero page", {51}, {51}},
      {"a zero page alone", {9}, {9}},
      {"the first page of many zeros", {100}, {100}},
      {"the last page of many zeros", {299}, {299}},
      {"either side of a read of zeros", {163, 164}, {163, 164}},
      {"pages beside the set", {39, 43, 49, 52, 99, 300, 399, 0}, {}},
      {"several groups", {23, 3, 60, 200}, {60, 3, 200, 23}},
  };
  for (const bool stored : {false, true}) {
    for (const Row& row : rows) {
      check::about = std::string(row.name) + (stored ? " of stored zeros" : " of holes");
      const Snapshot snapshot(kGroups, stored);
      for (const uint32_t page : row.changed) snapshot.change_page(page);
      const Comparison found = snapshot.compare();
      CHECK_EQ(found.failure.code, ErrorCode::none);
      CHECK_EQ(found.pages, kCompared);
      CHECK_EQ(found.mismatched_pages, row.found.size());
      CHECK(is_list(found.mismatches, row.found));
    }
  }
}

TEST(a_comparison_sees_one_bit_at_either_end_of_a_page) {
  for (const uint64_t page : {41, 51, 150, 511}) {
    for (const uint64_t offset : {uint64_t{0}, kPage - 1}) {
      check::about = std::to_string(page) + " + " + std::to_string(offset);
      const Snapshot snapshot(kGroups);
      const uint64_t at = page * kPage + offset;
      uint8_t byte = 0;
      {
        const reap::UniqueFd file(::open(snapshot.memory().c_str(), O_RDONLY | O_CLOEXEC));
        CHECK_EQ(::pread(file.get(), &byte, 1, static_cast<off_t>(at)), 1);
      }
      write_at(snapshot.memory(), at, {static_cast<uint8_t>(byte ^ 0x80)});
      const Comparison found = snapshot.compare();
      CHECK_EQ(found.mismatched_pages, 1);
      CHECK(is_list(found.mismatches, {static_cast<uint32_t>(page)}));
    }
  }
}

TEST(a_comparison_treats_stored_zeros_and_zero_extents_alike) {
  const Snapshot snapshot(kGroups);
  for (const uint64_t page : {50, 100, 164, 299}) snapshot.change_page(page, 0);
  CHECK_EQ(snapshot.compare().mismatched_pages, 0);
}

TEST(a_comparison_finds_data_that_has_become_a_hole) {
  const Snapshot snapshot(kGroups);
  const reap::UniqueFd file(::open(snapshot.memory().c_str(), O_RDWR | O_CLOEXEC));
  if (::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 20 * kPage, 3 * kPage)) {
    SKIP("needs a file system that makes holes");
  }
  const Comparison found = snapshot.compare();
  CHECK_EQ(found.mismatched_pages, 3);
  CHECK(is_list(found.mismatches, {20, 21, 22}));
}

TEST(a_comparison_lists_the_first_16_pages_and_counts_the_others) {
  const Snapshot snapshot(kGroups);
  std::vector<uint32_t> expected;
  for (uint32_t page = 110; page < 150; ++page) {
    snapshot.change_page(page);
    if (expected.size() < Comparison::kMaxMismatches) expected.push_back(page);
  }
  snapshot.change_page(450);
  const Comparison found = snapshot.compare();
  CHECK_EQ(found.mismatched_pages, 41);
  CHECK(is_list(found.mismatches, expected));
}

TEST(a_comparison_rejects_a_group_with_a_wrong_checksum) {
  for (size_t group = 0; group < kGroups.size(); ++group) {
    if (group == 2) continue;  // it has no data
    check::about = "group " + std::to_string(group);
    Snapshot snapshot(kGroups);
    const uint64_t offset = snapshot.plan.groups[group].data_offset;
    write_at(snapshot.path, offset + snapshot.plan.groups[group].data_bytes - 1, {0x11});
    const Comparison found = snapshot.compare();
    CHECK_EQ(found.failure.code, ErrorCode::working_set_invalid);
    CHECK_EQ(found.failure.check, "group-checksum");
    CHECK_EQ(found.failure.offset, offset);
    CHECK_EQ(found.mismatched_pages, 0);
  }
}

TEST(a_comparison_reports_which_file_was_truncated) {
  {
    check::about = "the set";
    const Snapshot snapshot(kGroups);
    const uint64_t offset = snapshot.plan.groups[3].data_offset;
    CHECK_EQ(::truncate(snapshot.path.c_str(), static_cast<off_t>(offset + kPage)), 0);
    const Comparison found = snapshot.compare();
    CHECK_EQ(found.failure.code, ErrorCode::working_set_invalid);
    CHECK_EQ(found.failure.check, "cut-short");
    CHECK_EQ(found.failure.offset, offset);
  }
  struct Row {
    const char* name;
    std::vector<Group> groups;
    uint64_t cut_to;
    uint64_t offset;
  };
  const Row rows[] = {
      {"the memory file in data", kGroups, 511, 400},
      {"the memory file in zeros", {{{40, 3}}, {{100, 200, true}}}, 250, 228},
      {"the memory file in zeros that end it", {{{40, 3}}, {{312, 200, true}}}, 400, 376},
      {"the memory file before zeros", {{{300, 212, true}}}, 100, 300},
  };
  for (const Row& row : rows) {
    for (const bool stored : {false, true}) {
      check::about = std::string(row.name) + (stored ? ", stored" : ", holes");
      const Snapshot snapshot(row.groups, stored);
      const std::atomic<bool> never{false};
      const Comparison found = snapshot.compare(
          never, [](uint64_t) {},
          [&] {
            CHECK_EQ(::truncate(snapshot.memory().c_str(), static_cast<off_t>(row.cut_to * kPage)),
                     0);
          });
      CHECK_EQ(found.failure.code, ErrorCode::source_read);
      CHECK_EQ(found.failure.check, "cut-short");
      CHECK_EQ(found.failure.offset, row.offset * kPage);
    }
  }
}

TEST(a_comparison_reports_its_progress_after_each_group) {
  const Snapshot snapshot(kGroups);
  const std::atomic<bool> never{false};
  std::vector<uint64_t> told;
  snapshot.compare(never, [&](uint64_t pages) { told.push_back(pages); });
  CHECK(told == (std::vector<uint64_t>{6, 9, 209, 325}));
}

TEST(a_stopped_comparison_reads_no_further_group) {
  const Snapshot snapshot(kGroups);
  std::atomic<bool> stop{true};
  CHECK_EQ(snapshot.compare(stop, [](uint64_t) {}).pages, 0);
  stop = false;
  const Comparison found = snapshot.compare(stop, [&](uint64_t pages) { stop = pages >= 9; });
  CHECK_EQ(found.pages, 9);
  CHECK_EQ(found.failure.code, ErrorCode::none);
}
