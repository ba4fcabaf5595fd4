// Residency of files that are in the page cache, partly there, not there, or no working set.
#include "page_cache/residency.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/crc32c.h"
#include "files/cached_file.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"
#include "working_set/plan.h"

namespace {

using fixture::PageFile;

constexpr uint32_t kMemoryPages = 2048;

// A working-set file that has as much as is looked at.
struct Set {
  // The fields of the header at their places.
  struct __attribute__((packed)) Header {
    char magic[8] = {'R', 'E', 'A', 'P', 'W', 'S', 'E', 'T'};
    uint16_t major = 3, minor = 0;
    uint32_t header_bytes = 4096;
    uint64_t file_bytes = 0;
    uint64_t memory_bytes = kMemoryPages * 4096;
    uint32_t granule = 4096, page_size = 4096;
    uint64_t index_offset = 4096, index_bytes = 0, data_offset = 0;
    uint32_t groups = 0, extents = 0, touches = 0, written_touches = 0, runs = 1,
             manifest_bytes = 0;
    uint64_t data_pages = 0, zero_pages = 0;
    uint8_t id[16] = {};
    uint32_t index_checksum = 0, header_checksum = 0, disks = 0, disk_extents = 0;
  };
  static_assert(sizeof(Header) == 136);

  explicit Set(std::vector<reap::PlanExtent> all) : extents(std::move(all)) {
    header.extents = static_cast<uint32_t>(extents.size());
    header.groups = (header.extents + 255) / 256;
    for (const auto& extent : extents) {
      (extent.flags & reap::kZeroExtent ? header.zero_pages : header.data_pages) +=
          extent.page_count;
    }
    table += header.groups * sizeof(reap::PlanGroup);
    const uint64_t index_end = table + extents.size() * sizeof(reap::PlanExtent);
    header.data_offset = (index_end + 4095) / 4096 * 4096;
    bytes = header.data_offset + header.data_pages * 4096;
  }

  bool write(const std::string& path) const {
    std::vector<uint8_t> file_bytes(bytes);
    std::memcpy(file_bytes.data(), &header, sizeof header);
    // Right, whatever the fields say: they are what is tested.
    const uint32_t checksum = reap::crc32c(file_bytes.data(), 4096);
    std::memcpy(file_bytes.data() + offsetof(Header, header_checksum), &checksum, sizeof checksum);
    if (!extents.empty()) {
      std::memcpy(file_bytes.data() + table, extents.data(), extents.size() * sizeof extents[0]);
    }
    const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    return ::write(file.get(), file_bytes.data(), bytes) == static_cast<ssize_t>(bytes);
  }

  std::vector<reap::PlanExtent> extents;
  Header header;
  // Of the file, whatever becomes of the header.
  uint64_t table = 4096;
  uint64_t bytes = 0;
};

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
  explicit Files(const Set& set) : path_(directory_.path("set")) { CHECK(set.write(path_)); }

  const PageFile& memory() const { return memory_; }
  const std::string& set() const { return path_; }
  reap::Residency residency() const {
    reap::Residency found;
    CHECK(!reap::find_residency(memory_.path(), path_, &found));
    return found;
  }

 private:
  const PageFile memory_{kMemoryPages};
  const fixture::TempDir directory_;
  const std::string path_;
};

bool is_about(uint64_t value, uint64_t wanted) {
  return value * 10 >= wanted * 8 && value * 10 <= wanted * 12;
}

// Every way in which the kernel tells of the page cache.
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
    const Set set(extents_at(fixture::every(2, 0, 2048)));
    const Files files(set);
    const reap::Residency found = files.residency();
    CHECK_EQ(found.page_size, 4096);
    CHECK_EQ(found.memory_bytes, kMemoryPages * 4096);
    CHECK_EQ(found.memory_file_bytes, kMemoryPages * 4096);
    CHECK_EQ(found.pages, 1024);
    CHECK_EQ(found.disks, 0);
    CHECK_EQ(found.missing_pages, 0);
  });
}

TEST(residency_finds_a_working_set_that_is_not_in_the_page_cache) {
  const Set set(extents_at(fixture::every(4, 0, 2048), 2));
  const Files files(set);
  fixture::forget_cached(files.set());
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK(found.is_visible);
  CHECK_EQ(found.pages, 1024);
  CHECK_EQ(found.missing_pages, 1024);
  // Looking brings in nothing.
  CHECK(files.memory().there().empty());
}

TEST(residency_finds_half_of_a_working_set) {
  const Set set(extents_at(fixture::every(2, 0, 2048)));
  const Files files(set);
  files.memory().evict(0, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK(is_about(found.missing_pages, 512));
}

TEST(residency_tells_pages_from_extents_that_lack_some) {
  // One page of each extent of four is there.
  const Set set(extents_at(fixture::every(8, 0, 2048), 4));
  const Files files(set);
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  files.memory().read(fixture::every(8, 0, 2048));
  const reap::Residency found = files.residency();
  CHECK_EQ(found.missing_pages, 768);
}

TEST(residency_leaves_out_zero_extents_that_are_holes) {
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 1024));
  // Every second one is of zeros, and not in the page cache.
  for (size_t i = 1; i < extents.size(); i += 2) {
    extents[i] = {1024 + static_cast<uint32_t>(i), 1, 0, reap::kZeroExtent};
  }
  const Set set(extents);
  const Files files(set);
  files.memory().evict(1024, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  reap::Residency found = files.residency();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.missing_pages, 256);
  // A file with holes has them where its zeros are.
  CHECK_EQ(::truncate(files.memory().path().c_str(), kMemoryPages * 4096 + (1 << 20)), 0);
  found = files.residency();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.missing_pages, 0);
  CHECK(files.memory().evict());
  found = files.residency();
  CHECK_EQ(found.missing_pages, 256);

  const Files zeros(Set(extents_at(fixture::every(2, 0, 1024), 1, reap::kZeroExtent)));
  CHECK_EQ(zeros.residency().page_size, 4096);
  CHECK_EQ(zeros.residency().pages, 512);
  CHECK_EQ(zeros.residency().missing_pages, 0);
}

TEST(residency_of_which_all_samples_are_holes_does_not_say_that_the_rest_is_there) {
  // So many that no sample meets the one with data.
  std::vector<uint32_t> pages(8192);
  for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = i % kMemoryPages;
  Set set(extents_at(pages, 1, reap::kZeroExtent));
  set.extents.back().flags = 0;
  set.header.zero_pages = kMemoryPages - 1;
  set.header.data_pages = 1;
  set.bytes += 4096;
  const Files files(set);
  CHECK_EQ(::truncate(files.memory().path().c_str(), kMemoryPages * 4096 + (1 << 20)), 0);
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().missing_pages, 1);
}

TEST(residency_looks_at_parts_of_long_extents) {
  const Files files(Set(extents_at(fixture::every(256, 0, 2048), 256)));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().there().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().missing_pages, 1024);
  // Each has its first quarter, where not all looks may be.
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  for (uint32_t first = 0; first < kMemoryPages; first += 256) {
    files.memory().read(fixture::every(1, first, first + 64));
  }
  CHECK(files.residency().missing_pages > 1024);
}

TEST(residency_counts_pages_of_long_extents_for_more) {
  // 7 pages that lie alone, and one extent of 993.
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 14));
  extents.push_back({1024, 993, 7, 0});
  const Set set(extents);
  const Files files(set);
  files.memory().evict(1024, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.residency().pages, 1000);
  CHECK_EQ(files.residency().missing_pages, 993);
}

TEST(residency_looks_at_low_and_high_addresses_of_groups) {
  // 64 groups of 32 extents from all over the memory, of which the lower half is there.
  std::vector<uint32_t> pages;
  for (uint32_t group = 0; group < 64; ++group) {
    for (uint32_t i = 0; i < 32; ++i) pages.push_back(i * 64 + group);
  }
  const Files files(Set(extents_at(pages)));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().there().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  const reap::Residency found = files.residency();
  CHECK(found.missing_pages > 0);
  CHECK(found.missing_pages < 2048);
}

TEST(residency_takes_a_set_without_pages) {
  Set set({});
  set.header.disks = 3;
  const Files files(set);
  const reap::Residency found = files.residency();
  CHECK_EQ(found.page_size, 4096);
  CHECK_EQ(found.disks, 3);
  CHECK_EQ(found.pages, 0);
  CHECK_EQ(found.missing_pages, 0);
}

TEST(residency_goes_without_a_working_set) {
  const PageFile memory(16);
  reap::Residency found;
  CHECK(!reap::find_residency(memory.path(), "", &found));
  CHECK_EQ(found.page_size, 0);
  CHECK_EQ(found.memory_file_bytes, 16 * 4096);
}

TEST(residency_makes_nothing_of_a_file_that_is_no_working_set) {
  const PageFile memory(16), other(16), empty(0), shorter(1, "", 4096 - 131);
  Set set(extents_at({1, 2}));
  set.header.major = 1;
  const Files earlier(set);
  set.header.major = 4;
  const Files later(set);
  for (const std::string& path :
       {other.path(), empty.path(), shorter.path(), earlier.set(), later.set()}) {
    reap::Residency found;
    CHECK(!reap::find_residency(memory.path(), path, &found));
    CHECK_EQ(found.page_size, 0);
    CHECK_EQ(found.pages, 0);
    CHECK_EQ(found.memory_file_bytes, 16 * 4096);
  }
}

TEST(residency_says_which_file_cannot_be_opened) {
  const uint64_t descriptors = fixture::descriptors_here();
  const PageFile memory(16);
  const fixture::TempDir directory;
  CHECK_EQ(::mkfifo(directory.path("pipe").c_str(), 0600), 0);
  reap::Residency found;
  reap::Failure failure = reap::find_residency(directory.path("missing"), "", &found);
  CHECK(failure.code == reap::ErrorCode::source_read);
  CHECK_EQ(failure.err, -ENOENT);
  failure = reap::find_residency(memory.path(), directory.path("missing"), &found);
  CHECK(failure.code == reap::ErrorCode::working_set_io);
  CHECK_EQ(failure.err, -ENOENT);
  failure = reap::find_residency(memory.path(), directory.path("pipe"), &found);
  CHECK(failure.code == reap::ErrorCode::working_set_io);
  CHECK_EQ(failure.err, -EINVAL);
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(residency_makes_nothing_of_a_header_that_does_not_fit_its_file) {
  const struct {
    const char* name;
    void (*damage)(Set::Header&);
  } kRows[] = {
      {"extents", [](auto& header) { header.extents = UINT32_MAX; }},
      {"one extent too many", [](auto& header) { header.extents += 1 << 20; }},
      {"groups", [](auto& header) { header.groups = UINT32_MAX; }},
      {"index offset", [](auto& header) { header.index_offset = UINT64_MAX; }},
      // The table of extents would begin at 0 again.
      {"index offset that wraps", [](auto& header) { header.index_offset = -uint64_t{64}; }},
      {"negative index offset", [](auto& header) { header.index_offset = uint64_t{1} << 63; }},
      {"data offset", [](auto& header) { header.data_offset = UINT64_MAX; }},
      {"data pages", [](auto& header) { header.data_pages = UINT64_MAX; }},
      {"data pages that wrap", [](auto& header) { header.data_pages += uint64_t{1} << 52; }},
      {"one data page too many", [](auto& header) { ++header.data_pages; }},
      {"no page size", [](auto& header) { header.page_size = 0; }},
      {"another page size", [](auto& header) { header.page_size = 16384; }},
  };
  for (const auto& row : kRows) {
    Set set(extents_at(fixture::every(2, 0, 1024)));
    row.damage(set.header);
    const Files files(set);
    const reap::Residency found = files.residency();
    check::about = row.name;
    CHECK_EQ(found.page_size, 0);
    CHECK_EQ(found.pages, 0);
    CHECK_EQ(found.missing_pages, 0);
    CHECK_EQ(found.memory_file_bytes, kMemoryPages * 4096);
  }
}

TEST(residency_makes_nothing_of_a_header_with_a_wrong_checksum) {
  const Files files(Set(extents_at({1, 3, 5})));
  CHECK_EQ(files.residency().page_size, 4096);
  const reap::UniqueFd set(::open(files.set().c_str(), O_RDWR | O_CLOEXEC));
  const uint8_t other_runs = 2;
  CHECK_EQ(::pwrite(set.get(), &other_runs, 1, 80), 1);
  CHECK_EQ(files.residency().page_size, 0);
}

TEST(residency_takes_any_table_of_extents) {
  const struct {
    const char* name;
    reap::PlanExtent extent;
  } kRows[] = {
      {"past the memory", {kMemoryPages - 1, 2, 0, 0}},
      {"behind the memory", {UINT32_MAX, 1, 0, 0}},
      {"endless", {0, UINT32_MAX, 0, 0}},
      {"endless behind the memory", {UINT32_MAX, UINT32_MAX, 0, 0}},
      {"without pages", {5, 0, 0, 0}},
      {"with every flag", {5, 1, 0, UINT32_MAX}},
  };
  for (const auto& row : kRows) {
    Set set(extents_at(fixture::every(2, 0, 1024)));
    for (auto& extent : set.extents) extent = row.extent;
    in_every_way([&] {
      const Files files(set);
      const reap::Residency found = files.residency();
      check::about = row.name;
      CHECK_EQ(found.page_size, 4096);
      CHECK_EQ(found.pages, 512);
      CHECK(found.missing_pages <= found.pages);
    });
  }
}

TEST(residency_takes_an_empty_memory_file) {
  const PageFile memory(0);
  const Files files(Set(extents_at({1, 2, 3})));
  reap::Residency found;
  CHECK(!reap::find_residency(memory.path(), files.set(), &found));
  CHECK_EQ(found.memory_file_bytes, 0);
  CHECK_EQ(found.pages, 3);
  CHECK_EQ(found.missing_pages, 3);
}
