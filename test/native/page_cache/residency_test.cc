// Surveys of files that are in the page cache, partly there, not there, or no working set.
#include "page_cache/survey.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "base/crc32c.h"
#include "files/cached_file.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"
#include "working_set/plan.h"

namespace {

using fixture::PageFile;

constexpr uint32_t kMemoryPages = 2048;

// A working-set file that has as much as a survey looks at.
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
    uint32_t groups = 0, extents = 0, touches = 0, reserved = 0, runs = 1, manifest_bytes = 0;
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

// Whether the kernel tells of the page cache, and by cachestat(2): as in_every_way() has it.
bool kernel_tells = true;

// A memory file and a working set.
class Files {
 public:
  explicit Files(const Set& set) : path_(directory_.path("set")) { CHECK(set.write(path_)); }

  const PageFile& memory() const { return memory_; }
  const std::string& set() const { return path_; }
  reap::Survey survey() const {
    reap::Survey found;
    CHECK(!reap::survey(memory_.path(), path_, &found));
    check_at_once(found);
    return found;
  }
  bool survey_at_once(reap::Survey* found) const {
    return reap::survey_at_once(memory_.path(), path_, found);
  }

 private:
  // What had to be read for the first survey is there now.
  void check_at_once(const reap::Survey& wanted) const {
    reap::Survey found;
    const bool is_had = survey_at_once(&found);
    CHECK_EQ(is_had, wanted.page_size != 0 && kernel_tells && is_on_local_disk());
    if (!is_had) return;
    for (const auto field :
         {&reap::Survey::page_size, &reap::Survey::memory_bytes, &reap::Survey::pages,
          &reap::Survey::extents, &reap::Survey::disks, &reap::Survey::memory_device,
          &reap::Survey::set_device, &reap::Survey::memory_file_bytes, &reap::Survey::windows,
          &reap::Survey::missing_pages, &reap::Survey::missing_extents,
          &reap::Survey::missing_bytes}) {
      CHECK_EQ(found.*field, wanted.*field);
    }
    CHECK_EQ(found.is_visible, wanted.is_visible);
    CHECK_EQ(found.share_around, wanted.share_around);
  }
  bool is_on_local_disk() const {
    reap::Survey found;
    return reap::survey_at_once(memory_.path(), "", &found);
  }

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
  kernel_tells = false;
  check::about = "mincore";
  run();
  reap::hooks::hides_residency = [] { return true; };
  check::about = "reads that do not wait";
  run();
  kernel_tells = true;
  check::about.clear();
}

constexpr char kNeedsLocalDisk[] =
    "needs Linux 6.8, openat2(2), and a temporary folder on ext4 or btrfs";

bool is_known_local(const std::string& path) {
  struct statfs file_system {};
  if (::statfs(path.c_str(), &file_system) != 0 || !reap::has_cachestat(file_system)) return false;
  if (file_system.f_type != EXT4_SUPER_MAGIC && file_system.f_type != BTRFS_SUPER_MAGIC) {
    return false;
  }
  utsname kernel{};
  int major = 0, minor = 0;
  if (::uname(&kernel) != 0 || std::sscanf(kernel.release, "%d.%d", &major, &minor) != 2 ||
      major * 1000 + minor < 6008) {
    return false;
  }
  // Without arguments it is EFAULT or EINVAL; a sandbox says ENOSYS or EPERM.
  return ::syscall(437, AT_FDCWD, nullptr, nullptr, 0) < 0 && errno != ENOSYS && errno != EPERM;
}

}  // namespace

TEST(survey_finds_a_working_set_that_is_in_the_page_cache) {
  in_every_way([] {
    const Set set(extents_at(fixture::every(2, 0, 2048)));
    const Files files(set);
    const reap::Survey found = files.survey();
    CHECK_EQ(found.page_size, 4096);
    CHECK_EQ(found.memory_bytes, kMemoryPages * 4096);
    CHECK_EQ(found.memory_file_bytes, kMemoryPages * 4096);
    CHECK_EQ(found.pages, 1024);
    CHECK_EQ(found.extents, 1024);
    CHECK_EQ(found.disks, 0);
    CHECK_EQ(found.missing_pages, 0);
    CHECK_EQ(found.missing_extents, 0);
    CHECK_EQ(found.missing_bytes, 0);
    CHECK(found.memory_device > 0);
    CHECK_EQ(found.memory_device, found.set_device);
  });
}

TEST(survey_finds_a_working_set_that_is_not_in_the_page_cache) {
  const Set set(extents_at(fixture::every(4, 0, 2048), 2));
  const Files files(set);
  fixture::forget_cached(files.set());
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  const reap::Survey found = files.survey();
  CHECK(found.is_visible);
  CHECK_EQ(found.pages, 1024);
  CHECK_EQ(found.extents, 512);
  CHECK_EQ(found.missing_pages, 1024);
  CHECK_EQ(found.missing_extents, 512);
  CHECK_EQ(found.missing_bytes, 1024 * 4096);
  // Looking brings in nothing.
  CHECK(files.memory().there().empty());
}

TEST(survey_of_what_is_nowhere_reads_the_beginning_of_a_large_table_alone) {
  // A table of 1 MiB, whose samples would lie all over it, in a file of hardly more.
  std::vector<uint32_t> pages(65536);
  for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = i % kMemoryPages;
  Set set(extents_at(pages, 1, reap::kZeroExtent));
  set.header.zero_pages = kMemoryPages;  // as many as it may say
  const Files files(set);
  const reap::UniqueFd file(::open(files.set().c_str(), O_RDONLY | O_CLOEXEC));
  constexpr uint64_t kFirstPages = 8;
  const auto later_pages = [&] {
    return reap::cached_pages(file.get(), kFirstPages, set.bytes / 4096 - kFirstPages);
  };
  for (const bool has_some : {false, true}) {
    fixture::forget_cached(files.set());
    if (later_pages() < 0) SKIP("needs cachestat(2), of Linux 6.5");
    if (later_pages() > 0 || !files.memory().evict()) SKIP(fixture::kNeedsEviction);
    if (has_some) files.memory().read({kMemoryPages - 1});
    reap::Survey found;
    CHECK(!reap::survey(files.memory().path(), files.set(), &found));
    CHECK_EQ(found.extents, 65536);
    CHECK_EQ(later_pages() > 0, has_some);
    CHECK(is_about(found.missing_extents, 65536));
  }
}

TEST(survey_finds_half_of_a_working_set) {
  const Set set(extents_at(fixture::every(2, 0, 2048)));
  const Files files(set);
  files.memory().evict(0, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  const reap::Survey found = files.survey();
  CHECK(is_about(found.missing_pages, 512));
  CHECK(is_about(found.missing_extents, 512));
  CHECK_EQ(found.missing_bytes, 0);
}

TEST(survey_tells_pages_from_extents_that_lack_some) {
  // One page of each extent of four is there.
  const Set set(extents_at(fixture::every(8, 0, 2048), 4));
  const Files files(set);
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  files.memory().read(fixture::every(8, 0, 2048));
  const reap::Survey found = files.survey();
  CHECK_EQ(found.extents, 256);
  CHECK_EQ(found.missing_extents, 256);
  CHECK_EQ(found.missing_pages, 768);
}

TEST(survey_leaves_out_zero_extents_that_are_holes) {
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 1024));
  // Every second one is of zeros, and not in the page cache.
  for (size_t i = 1; i < extents.size(); i += 2) {
    extents[i] = {1024 + static_cast<uint32_t>(i), 1, 0, reap::kZeroExtent};
  }
  const Set set(extents);
  const Files files(set);
  files.memory().evict(1024, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  reap::Survey found = files.survey();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.extents, 512);
  CHECK_EQ(found.missing_pages, 256);
  CHECK_EQ(found.missing_extents, 256);
  // A file with holes has them where its zeros are.
  CHECK_EQ(::truncate(files.memory().path().c_str(), kMemoryPages * 4096 + (1 << 20)), 0);
  found = files.survey();
  CHECK_EQ(found.pages, 512);
  CHECK_EQ(found.missing_pages, 0);
  CHECK_EQ(found.missing_extents, 0);
  CHECK(files.memory().evict());
  found = files.survey();
  CHECK_EQ(found.missing_pages, 256);
  CHECK_EQ(found.missing_extents, 256);

  const Files zeros(Set(extents_at(fixture::every(2, 0, 1024), 1, reap::kZeroExtent)));
  CHECK_EQ(zeros.survey().page_size, 4096);
  CHECK_EQ(zeros.survey().pages, 512);
  CHECK_EQ(zeros.survey().missing_pages, 0);
  CHECK_EQ(zeros.survey().missing_bytes, 0);
}

TEST(survey_of_which_all_samples_are_holes_does_not_say_that_the_rest_is_there) {
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
  CHECK_EQ(files.survey().missing_pages, 1);
  CHECK_EQ(files.survey().missing_extents, 1);
}

TEST(survey_of_data_that_is_partly_there_has_whole_groups_missing) {
  // 8 groups of 1 MiB.
  const Set set(extents_at(fixture::every(256, 0, 2048), 256));
  const Files files(set);
  fixture::forget_cached(files.set());
  {
    // The index, and the first half of each group.
    const reap::UniqueFd file(::open(files.set().c_str(), O_RDONLY | O_CLOEXEC));
    CHECK_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_RANDOM), 0);
    std::vector<uint8_t> half(512 << 10);
    for (uint64_t i = 0; i < 8; ++i) {
      CHECK_EQ(::pread(file.get(), half.data(), half.size(),
                       static_cast<off_t>(set.header.data_offset + 2 * i * half.size())),
               half.size());
    }
  }
  CHECK_EQ(files.survey().missing_bytes, 2048 * 4096);
}

TEST(survey_looks_at_parts_of_long_extents) {
  const Files files(Set(extents_at(fixture::every(256, 0, 2048), 256)));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().there().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.survey().missing_pages, 1024);
  CHECK_EQ(files.survey().missing_extents, 4);
  // Each has its first quarter, where not all looks may be.
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  for (uint32_t first = 0; first < kMemoryPages; first += 256) {
    files.memory().read(fixture::every(1, first, first + 64));
  }
  CHECK(files.survey().missing_pages > 1024);
}

TEST(survey_counts_pages_of_long_extents_for_more) {
  // 7 pages that lie alone, and one extent of 993.
  std::vector<reap::PlanExtent> extents = extents_at(fixture::every(2, 0, 14));
  extents.push_back({1024, 993, 7, 0});
  const Set set(extents);
  const Files files(set);
  files.memory().evict(1024, 1024);
  if (files.memory().there().size() != 1024) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.survey().pages, 1000);
  CHECK_EQ(files.survey().missing_pages, 993);
  CHECK_EQ(files.survey().missing_extents, 1);
}

TEST(survey_looks_at_low_and_high_addresses_of_groups) {
  // 64 groups of 32 extents from all over the memory, of which the lower half is there.
  std::vector<uint32_t> pages;
  for (uint32_t group = 0; group < 64; ++group) {
    for (uint32_t i = 0; i < 32; ++i) pages.push_back(i * 64 + group);
  }
  const Files files(Set(extents_at(pages)));
  files.memory().evict(kMemoryPages / 2, kMemoryPages / 2);
  if (files.memory().there().size() != kMemoryPages / 2) SKIP(fixture::kNeedsEviction);
  const reap::Survey found = files.survey();
  CHECK(found.missing_pages > 0);
  CHECK(found.missing_pages < 2048);
}

TEST(survey_takes_a_set_without_pages) {
  Set set({});
  set.header.disks = 3;
  const Files files(set);
  const reap::Survey found = files.survey();
  CHECK_EQ(found.page_size, 4096);
  CHECK_EQ(found.disks, 3);
  CHECK_EQ(found.pages, 0);
  CHECK_EQ(found.extents, 0);
  CHECK_EQ(found.missing_pages, 0);
  CHECK_EQ(found.missing_bytes, 0);
}

TEST(survey_goes_without_a_working_set) {
  const PageFile memory(16);
  reap::Survey found;
  CHECK(!reap::survey(memory.path(), "", &found));
  CHECK_EQ(found.page_size, 0);
  CHECK_EQ(found.memory_file_bytes, 16 * 4096);
  CHECK(found.memory_device > 0);
  CHECK_EQ(found.set_device, 0);
}

TEST(survey_makes_nothing_of_a_file_that_is_no_working_set) {
  const PageFile memory(16), other(16), empty(0), shorter(1, "", 4096 - 131);
  Set set(extents_at({1, 2}));
  set.header.major = 1;
  const Files earlier(set);
  set.header.major = 4;
  const Files later(set);
  for (const std::string& path :
       {other.path(), empty.path(), shorter.path(), earlier.set(), later.set()}) {
    reap::Survey found;
    CHECK(!reap::survey(memory.path(), path, &found));
    CHECK_EQ(found.page_size, 0);
    CHECK_EQ(found.pages, 0);
    CHECK_EQ(found.memory_file_bytes, 16 * 4096);
  }
}

TEST(survey_says_which_file_cannot_be_opened) {
  const uint64_t descriptors = fixture::descriptors_here();
  const PageFile memory(16);
  const fixture::TempDir directory;
  CHECK_EQ(::mkfifo(directory.path("pipe").c_str(), 0600), 0);
  reap::Survey found;
  reap::Failure failure = reap::survey(directory.path("missing"), "", &found);
  CHECK(failure.code == reap::ErrorCode::source_read);
  CHECK_EQ(failure.err, -ENOENT);
  failure = reap::survey(memory.path(), directory.path("missing"), &found);
  CHECK(failure.code == reap::ErrorCode::working_set_io);
  CHECK_EQ(failure.err, -ENOENT);
  failure = reap::survey(memory.path(), directory.path("pipe"), &found);
  CHECK(failure.code == reap::ErrorCode::working_set_io);
  CHECK_EQ(failure.err, -EINVAL);
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(survey_makes_nothing_of_a_header_that_does_not_fit_its_file) {
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
    const reap::Survey found = files.survey();
    check::about = row.name;
    CHECK_EQ(found.page_size, 0);
    CHECK_EQ(found.pages, 0);
    CHECK_EQ(found.missing_pages, 0);
    CHECK_EQ(found.missing_bytes, 0);
    CHECK_EQ(found.memory_file_bytes, kMemoryPages * 4096);
  }
}

TEST(survey_makes_nothing_of_a_header_with_a_wrong_checksum) {
  const Files files(Set(extents_at({1, 3, 5})));
  CHECK_EQ(files.survey().page_size, 4096);
  const reap::UniqueFd set(::open(files.set().c_str(), O_RDWR | O_CLOEXEC));
  const uint8_t other_runs = 2;
  CHECK_EQ(::pwrite(set.get(), &other_runs, 1, 80), 1);
  CHECK_EQ(files.survey().page_size, 0);
}

TEST(survey_takes_any_table_of_extents) {
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
      const reap::Survey found = files.survey();
      check::about = row.name;
      CHECK_EQ(found.page_size, 4096);
      CHECK_EQ(found.pages, 512);
      CHECK(found.missing_pages <= found.pages);
      CHECK(found.missing_extents <= found.extents);
    });
  }
}

TEST(survey_takes_an_empty_memory_file) {
  const PageFile memory(0);
  const Files files(Set(extents_at({1, 2, 3})));
  reap::Survey found;
  CHECK(!reap::survey(memory.path(), files.set(), &found));
  CHECK_EQ(found.memory_file_bytes, 0);
  CHECK_EQ(found.pages, 3);
  CHECK_EQ(found.missing_pages, 3);
}

TEST(survey_at_once_tells_what_is_in_memory) {
  const Files files(Set(extents_at(fixture::every(2, 0, 2048))));
  if (!is_known_local(files.memory().path())) SKIP(kNeedsLocalDisk);
  reap::Survey found;
  CHECK(!reap::survey(files.memory().path(), files.set(), &found));
  // Older than the file, so that a read would make it new.
  const timespec times[] = {{1000000000, 0}, {0, UTIME_OMIT}};
  CHECK_EQ(::utimensat(AT_FDCWD, files.set().c_str(), times, 0), 0);
  reap::Survey at_once;
  CHECK(files.survey_at_once(&at_once));
  struct stat status {};
  CHECK_EQ(::stat(files.set().c_str(), &status), 0);
  CHECK_EQ(status.st_atim.tv_sec, times[0].tv_sec);
  CHECK_EQ(at_once.pages, 1024);
  CHECK_EQ(at_once.missing_pages, 0);
  CHECK_EQ(at_once.memory_device, found.memory_device);
  CHECK_EQ(at_once.set_device, found.set_device);
  // What the memory file lacks is not waited for.
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  CHECK(files.survey_at_once(&at_once));
  CHECK_EQ(at_once.missing_pages, 1024);
  CHECK(files.memory().there().empty());
}

TEST(survey_at_once_leaves_what_would_wait) {
  const uint64_t descriptors = fixture::descriptors_here();
  {
    const Files files(Set(extents_at(fixture::every(2, 0, 2048))));
    reap::Survey found;
    CHECK(!reap::survey(files.memory().path(), files.set(), &found));
    reap::CachedFile set;
    CHECK_EQ(set.open(files.set()), 0);
    // A page that is being read stays until it is there.
    const auto is_evicted = [&] {
      CHECK_EQ(set.evict(), 0);
      return set.count(0, set.pages()) == 0;
    };
    if (!fixture::in_time(is_evicted)) SKIP(fixture::kNeedsEviction);
    CHECK(!files.survey_at_once(&found));
    // Not even a read that somebody else waits for was begun.
    CHECK_EQ(set.count(0, set.pages()), 0);
    // Its header alone.
    CHECK_EQ(set.wait_for(0, 1), 0);
    CHECK_EQ(set.count(0, set.pages()), 1);
    CHECK(!files.survey_at_once(&found));
    CHECK_EQ(set.count(0, set.pages()), 1);
  }
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(survey_at_once_asks_no_file_system_that_it_does_not_know) {
  // In memory, but what it is stands for a server: it is none of those that are known.
  const PageFile memory(16, "/dev/shm");
  reap::Survey found;
  CHECK(!reap::survey(memory.path(), "", &found));
  CHECK(!reap::survey_at_once(memory.path(), "", &found));
  CHECK(!reap::survey_at_once("/proc/self/status", "", &found));
  CHECK(!reap::survey_at_once(memory.path() + ".missing", "", &found));
}

TEST(survey_counts_what_a_fault_maps_at_once) {
  const auto windows = [](const std::vector<reap::PlanExtent>& extents) {
    return Files(Set(extents)).survey().windows;
  };
  CHECK_EQ(windows({}), 0);
  // Few among many: no two in one.
  CHECK_EQ(windows(extents_at({5})), 1);
  CHECK_EQ(windows(extents_at({15}, 2)), 2);
  // All in the same few.
  CHECK(is_about(windows(extents_at(fixture::every(2, 0, 256))), 16));
  // In each one.
  CHECK_EQ(windows(extents_at(fixture::every(16, 0, 2048))), 81);
  CHECK_EQ(windows(extents_at(fixture::every(16, 0, 2048), 16)), 81);
}

TEST(survey_times_looks_where_pages_are_there) {
  const Files files(Set(extents_at(fixture::every(32, 0, 2048))));
  if (!is_known_local(files.memory().path())) SKIP(kNeedsLocalDisk);
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.survey().look_ns, 0.0);
  CHECK_EQ(files.survey().share_around, 0.0);
  files.memory().read(fixture::every(32, 0, 2048));
  CHECK_EQ(files.survey().share_around, 1.0 / 32);
  files.memory().read(fixture::every(1, 0, 2048));
  CHECK(files.survey().look_ns >= 1);
  CHECK_EQ(files.survey().share_around, 1.0);
  fixture::Hooks hooks;
  reap::hooks::lacks_cachestat = [] { return true; };
  reap::Survey found;
  CHECK(!reap::survey(files.memory().path(), files.set(), &found));
  CHECK_EQ(found.look_ns, 0.0);
  CHECK_EQ(found.share_around, 1.0);
  reap::hooks::hides_residency = [] { return true; };
  if (!files.memory().evict()) SKIP(fixture::kNeedsEviction);
  CHECK_EQ(files.survey().share_around, 1.0);
}
