// Cost of reading working sets that are cached, partly cached, or not cached.
#include "page_cache/read_cost.h"

#include <unistd.h>

#include <utility>
#include <vector>

#include "support/check.h"
#include "support/page_cache_fixture.h"
#include "working_set/working_set.h"

namespace {

using fixture::PageFile;
using reap::BytesFrom;

constexpr uint64_t kPages = 2048;
constexpr uint64_t kMiB = 1 << 20;

// A set without groups, as recorded.
reap::WorkingSet set_of(std::vector<reap::PlanExtent> extents, uint32_t page_size = 4096) {
  reap::WorkingSet set;
  set.header.page_size = page_size;
  set.header.memory_bytes = kPages * 4096;
  set.plan.extents = std::move(extents);
  return set;
}

reap::ReadCost cost_of(const PageFile& file, const reap::WorkingSet& set, BytesFrom from) {
  reap::PageSource source;
  CHECK_EQ(source.open(file.path()), 0);
  return reap::find_read_cost(source, set, from);
}

bool has_direct_io(const PageFile& file) {
  reap::PageSource source;
  CHECK_EQ(source.open(file.path()), 0);
  alignas(4096) static uint8_t page[4096];
  return source.read_direct(0, page, sizeof page).read == reap::PageSource::Read::done;
}

}  // namespace

TEST(read_cost_of_cached_files_is_nothing) {
  const PageFile file(kPages);
  reap::WorkingSet set = set_of({{0, 3, 0, 0}, {100, 1, 3, 0}});
  set.plan.groups.push_back({4096, 4 * 4096, 0, 2, 0, 0, 0});
  for (const BytesFrom from : {BytesFrom::memory_file, BytesFrom::working_set_file}) {
    const reap::ReadCost cost = cost_of(file, set, from);
    CHECK(cost.is_visible);
    CHECK_EQ(cost.bytes, 4 * 4096);
    CHECK_EQ(cost.cached_bytes, 4 * 4096);
    CHECK_EQ(cost.reads, 0);
    CHECK_EQ(cost.read_bytes, 0);
    CHECK_EQ(cost.sampled_reads, 0);
  }
}

TEST(read_cost_of_a_working_set_file_is_that_of_whole_groups) {
  const PageFile file(kPages);
  reap::WorkingSet set = set_of({});
  for (uint64_t i = 0; i < 4; ++i) {
    set.plan.groups.push_back({i * kMiB, kMiB, 0, 0, 0, 0, 0});
  }
  set.plan.groups.push_back({4 * kMiB, 0, 0, 0, 0, 0, 0});  // of zero pages
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  // The first group is cached, and one page of the second.
  file.read(fixture::every(1, 0, 257));
  const std::vector<uint32_t> cached = file.cached();
  if (cached.size() != 257) SKIP("needs a file system that reads single pages");
  const reap::ReadCost cost = cost_of(file, set, BytesFrom::working_set_file);
  CHECK_EQ(cost.bytes, 4 * kMiB);
  CHECK_EQ(cost.cached_bytes, kMiB + 4096);
  CHECK_EQ(cost.reads, 3);
  CHECK_EQ(cost.read_bytes, 3 * kMiB);
  // The sample leaves the page cache as it was.
  CHECK(file.cached() == cached);
  if (!has_direct_io(file)) SKIP("needs a file system with O_DIRECT");
  CHECK_EQ(cost.sampled_reads, 3);
  CHECK_EQ(cost.sampled_bytes, 3 * kMiB);
}

TEST(read_cost_of_a_memory_file_is_that_of_missing_pages_of_extents) {
  const PageFile file(kPages);
  std::vector<reap::PlanExtent> extents;
  for (uint32_t i = 0; i < 512; ++i) extents.push_back({i * 4, 2, i * 2, 0});
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  // One page of each of the first 256 extents, and both of the next one.
  file.read(fixture::every(4, 0, 1024));
  file.read({1024, 1025});
  const std::vector<uint32_t> cached = file.cached();
  if (cached.size() != 258) SKIP("needs a file system that reads single pages");
  const reap::ReadCost cost = cost_of(file, set_of(extents), BytesFrom::memory_file);
  CHECK_EQ(cost.bytes, 1024 * 4096);
  CHECK_EQ(cost.cached_bytes, 258 * 4096);
  CHECK_EQ(cost.reads, 511);
  CHECK_EQ(cost.read_bytes, (1024 - 258) * 4096);
  CHECK(file.cached() == cached);
  if (!has_direct_io(file)) SKIP("needs a file system with O_DIRECT");
  CHECK(cost.sampled_reads > 0);
  CHECK(cost.sample_us > 0);
}

TEST(read_cost_leaves_out_holes) {
  const PageFile file(kPages);
  CHECK_EQ(::truncate(file.path().c_str(), 1024 * 4096), 0);
  CHECK_EQ(::truncate(file.path().c_str(), kPages * 4096), 0);
  const reap::WorkingSet set = set_of({{1000, 8, 0, 0}, {1100, 8, 8, reap::kZeroExtent}});
  CHECK_EQ(cost_of(file, set, BytesFrom::memory_file).bytes, 8 * 4096);
}

TEST(read_cost_of_huge_pages_is_that_of_whole_blocks) {
  const PageFile file(kPages);
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  const reap::WorkingSet set = set_of({{512, 512, 0, 0}, {1536, 512, 512, 0}}, 2 << 20);
  const reap::ReadCost cost = cost_of(file, set, BytesFrom::memory_file);
  CHECK_EQ(cost.bytes, 4 * kMiB);
  CHECK_EQ(cost.reads, 2);
  CHECK_EQ(cost.read_bytes, 4 * kMiB);
}

TEST(read_cost_counts_nothing_as_cached_if_the_kernel_hides_it) {
  const PageFile file(kPages);
  fixture::Hooks hooks;
  reap::hooks::hides_residency = [] { return true; };
  const reap::ReadCost cost = cost_of(file, set_of({{0, 8, 0, 0}}), BytesFrom::memory_file);
  CHECK(!cost.is_visible);
  CHECK_EQ(cost.cached_bytes, 0);
  CHECK_EQ(cost.reads, 1);
  CHECK_EQ(cost.read_bytes, 8 * 4096);
}

TEST(read_cost_of_a_set_without_pages_is_nothing) {
  const PageFile file(kPages);
  CHECK_EQ(cost_of(file, set_of({}), BytesFrom::memory_file).reads, 0);
}
