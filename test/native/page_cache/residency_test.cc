// Residency of working sets that are cached, partly cached, or not cached.
#include "page_cache/residency.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "files/cached_file.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"
#include "working_set/working_set.h"

namespace {

using fixture::PageFile;

constexpr uint32_t kMemoryPages = 2048;

// Tables of a set, as far as they are used.
reap::WorkingSet set_of(std::vector<reap::PlanExtent> extents) {
  reap::WorkingSet set;
  set.header.page_size = 4096;
  set.header.memory_bytes = uint64_t{kMemoryPages} * 4096;
  for (const auto& extent : extents) {
    set.touches.resize(set.touches.size() + extent.page_count);
    if (extent.flags & reap::kZeroExtent) set.header.zero_pages += extent.page_count;
  }
  set.plan.extents = std::move(extents);
  return set;
}

std::vector<reap::PlanExtent> extents_at(const std::vector<uint32_t>& pages,
                                         uint32_t page_count = 1, uint32_t flags = 0) {
  std::vector<reap::PlanExtent> extents;
  for (const uint32_t page : pages) {
    extents.push_back({page, page_count, static_cast<uint32_t>(extents.size()), flags});
  }
  return extents;
}

// A memory file and a working set.
class Files {
 public:
  explicit Files(std::vector<reap::PlanExtent> extents) : set_(set_of(std::move(extents))) {}

  const PageFile& memory() const { return memory_; }
  reap::Residency residency() const {
    reap::CachedFile cached;
    CHECK_EQ(cached.open(memory_.path()), 0);
    return reap::find_residency(cached, set_);
  }

 private:
  const PageFile memory_{kMemoryPages};
  const reap::WorkingSet set_;
};

bool is_about(uint64_t value, uint64_t wanted) {
  return value * 10 >= wanted * 8 && value * 10 <= wanted * 12;
}

// Each of the kernel's ways to report residency.
template <typename Run>
void in_every_way(Run run) {
  run();
  fixture::Hooks hooks;
  reap::hooks::lacks_cachestat = [] { return true; };
  check::about = "mincore";
  run();
  reap::hooks::hides_residency = [] { return true; };
  check::about = "reads that do not wait";
  run();
  check::about.clear();
}

}  // namespace

TEST(residency_finds_a_working_set_that_is_in_the_page_cache) {
  in_every_way([] {
    const Files files(extents_at(fixture::every(2, 0, 2048)));
    const reap::Residency found = files.residency();
    CHECK_EQ(found.pages, 1024);
    CHECK_EQ(found.missing_pages, 0);
  });
}

TEST(residency_finds_a_working_set_that_is_not_in_the_page_cache) {
  const Files files(extents_at(fixture::every(4, 0, 2048), 2));
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK_EQ(found.pages, 1024);
  CHECK_EQ(found.missing_pages, 1024);
  // The estimate reads nothing.
  CHECK(files.memory().cached().empty());
}

TEST(residency_finds_half_of_a_working_set) {
  const Files files(extents_at(fixture::every(2, 0, 2048)));
  files.memory().evict(0, 1024);
  if (files.memory().cached().size() != 1024) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK(is_about(found.missing_pages, 512));
}

TEST(residency_counts_missing_pages_and_not_incomplete_extents) {
  // One page of each extent of four is cached.
  const Files files(extents_at(fixture::every(8, 0, 2048), 4));
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  files.memory().read(fixture::every(8, 0, 2048));
  const reap::Residency found = files.residency();
  CHECK_EQ(found.missing_pages, 768);
}

TEST(residency_leaves_out_zero_extents_that_are_holes) {
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 1024));
  // Every second one is of zeros, and not cached.
  for (size_t i = 1; i < extents.size(); i += 2) {
    extents[i] = {1024 + static_cast<uint32_t>(i), 1, 0, reap::kZeroExtent};
  }
  const Files files(extents);
  files.memory().evict(1024, 1024);
  if (files.memory().cached().size() != 1024) SKIP(fixture::kNeedsEviction);
  reap::Residency found = files.residency();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.missing_pages, 256);
  // A file with holes has them in place of its zeros.
  CHECK_EQ(::truncate(files.memory().path().c_str(), kMemoryPages * 4096 + (1 << 20)), 0);
  found = files.residency();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.missing_pages, 0);
  CHECK(files.memory().evict());
  found = files.residency();
  CHECK_EQ(found.missing_pages, 256);

  const Files zeros(extents_at(fixture::every(2, 0, 1024), 1, reap::kZeroExtent));
  CHECK_EQ(zeros.residency().pages, 512);
  CHECK_EQ(zeros.residency().missing_pages, 0);
}

TEST(residency_counts_all_pages_as_missing_if_every_sample_is_a_hole) {
  // So many that no sample hits the one with data.
  std::vector<uint32_t> pages(8192);
  for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = i % kMemoryPages;
  std::vector<reap::PlanExtent> extents = extents_at(pages, 1, reap::kZeroExtent);
  extents.back().flags = 0;
  const Files files(extents);
  CHECK_EQ(::truncate(files.memory().path().c_str(), kMemoryPages * 4096 + (1 << 20)), 0);
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().missing_pages, 1);
}

TEST(residency_samples_parts_of_long_extents) {
  const Files files(extents_at(fixture::every(256, 0, 2048), 256));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().cached().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().missing_pages, 1024);
  // The first quarter of each is cached, which samples must not prefer.
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  for (uint32_t first = 0; first < kMemoryPages; first += 256) {
    files.memory().read(fixture::every(1, first, first + 64));
  }
  CHECK(files.residency().missing_pages > 1024);
}

TEST(residency_weights_extents_by_their_page_count) {
  // 7 single pages, and one extent of 993.
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 14));
  extents.push_back({1024, 993, 7, 0});
  const Files files(extents);
  files.memory().evict(1024, 1024);
  if (files.memory().cached().size() != 1024) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().pages, 1000);
  CHECK_EQ(files.residency().missing_pages, 993);
}

TEST(residency_samples_low_and_high_addresses_of_groups) {
  // 64 groups of 32 extents from all over the memory, whose lower half is cached.
  std::vector<uint32_t> pages;
  for (uint32_t group = 0; group < 64; ++group) {
    for (uint32_t i = 0; i < 32; ++i) pages.push_back(i * 64 + group);
  }
  const Files files(extents_at(pages));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().cached().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK(found.missing_pages > 0);
  CHECK(found.missing_pages < 2048);
}

TEST(residency_accepts_a_set_without_pages) {
  const Files files(std::vector<reap::PlanExtent>{});
  CHECK_EQ(files.residency().pages, 0);
  CHECK_EQ(files.residency().missing_pages, 0);
}
