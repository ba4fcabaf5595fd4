// Pages of a file in the page cache: counted, listed, brought in, dropped.
#include "files/cached_file.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <numeric>

#include "base/page.h"
#include "page_cache/mapped_pages.h"
#include "support/check.h"
#include "support/page_cache_fixture.h"

namespace {

using reap::kPage;

using fixture::Mapper;
using fixture::PageFile;

std::vector<uint32_t> cached_pages_of(const reap::CachedFile& file, uint32_t first,
                                      uint32_t pages) {
  std::vector<uint8_t> is_cached(pages);
  CHECK_EQ(file.map(first, pages, is_cached.data()), 0);
  std::vector<uint32_t> found;
  for (uint32_t i = 0; i < pages; ++i) {
    if (is_cached[i] & 1) found.push_back(first + i);
  }
  return found;
}

// With pages 3, 4 and 40 of 64 in the page cache.
void counts_cached_pages(const char* way) {
  check::about = way;
  const PageFile file(64, "", 100);
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  CHECK_EQ(cached.bytes(), 64 * 4096 - 100);
  CHECK_EQ(cached.pages(), 64);
  file.read({3, 4, 40, 63});
  CHECK_EQ(cached.count(3, 2), 2);
  CHECK_EQ(cached.count(40, 1), 1);
  CHECK_EQ(cached.count(3, 0), 0);
  CHECK_EQ(cached.count(63, 1), 1);
  CHECK_EQ(cached.count(63, UINT64_MAX), 1);
  CHECK_EQ(cached.count(64, 1), 0);
  CHECK_EQ(cached.count(UINT64_MAX, UINT64_MAX), 0);
  if (!cached.is_visible()) return;
  CHECK_EQ(cached.count(0, 64), 4);
  CHECK(cached_pages_of(cached, 0, 64) == std::vector<uint32_t>({3, 4, 40, 63}));
  CHECK(cached_pages_of(cached, 4, 36) == std::vector<uint32_t>({4}));
  CHECK_EQ(cached.evict(), 0);
  CHECK_EQ(cached.count(0, 64), 0);
}

}  // namespace

TEST(page_cache_of_a_file_is_counted) {
  counts_cached_pages("cachestat");
  fixture::Hooks hooks;
  reap::hooks::lacks_cachestat = [] { return true; };
  counts_cached_pages("mincore");
  reap::hooks::hides_residency = [] { return true; };
  counts_cached_pages("reads that do not wait");
}

TEST(page_cache_of_a_large_file_is_counted_without_cachestat) {
  fixture::Hooks hooks;
  reap::hooks::lacks_cachestat = [] { return true; };
  const PageFile file(1300);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  CHECK_EQ(cached.count(0, 1300), file.cached().size());
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  file.read({5, 511, 512, 1024, 1299});
  CHECK_EQ(cached.count(0, 1300), 5);
  CHECK_EQ(cached.count(6, 1294), 4);
}

TEST(page_cache_gets_the_requested_pages_and_no_others) {
  const PageFile file(256);
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  cached.will_need(10, 20);
  cached.will_need(250, 100);
  cached.will_need(256, 1);
  cached.will_need(UINT64_MAX, UINT64_MAX);
  CHECK_EQ(cached.wait_for(10, 20), 0);
  CHECK_EQ(cached.wait_for(250, 100), 0);
  CHECK_EQ(cached.wait_for(256, 1), 0);
  CHECK_EQ(cached.wait_for(UINT64_MAX, UINT64_MAX), 0);
  std::vector<uint32_t> wanted = fixture::every(1, 10, 30);
  for (uint32_t page = 250; page < 256; ++page) wanted.push_back(page);
  CHECK(file.cached() == wanted);
}

// The kernel reads as much of one request as the device's read-ahead or maximum request size.
TEST(page_cache_gets_all_pages_of_a_long_range) {
  for (const bool has_cachestat : {true, false}) {
    fixture::Hooks hooks;
    reap::hooks::lacks_cachestat = [=] { return !has_cachestat; };
    const PageFile file(6000);
    if (!file.evict()) SKIP(fixture::kNeedsEviction);
    reap::CachedFile cached;
    CHECK_EQ(cached.open(file.path()), 0);
    cached.will_need(0, 5000);
    CHECK(fixture::in_time([&] { return file.cached() == fixture::every(1, 0, 5000); }));
  }
}

TEST(page_cache_has_every_page_that_was_waited_for) {
  fixture::Hooks hooks;
  reap::hooks::drops_readahead = [] { return true; };
  for (const bool is_hidden : {false, true}) {
    reap::hooks::hides_residency = [=] { return is_hidden; };
    const PageFile file(700);
    if (!file.evict()) SKIP(fixture::kNeedsEviction);
    reap::CachedFile cached;
    CHECK_EQ(cached.open(file.path()), 0);
    file.read({5, 609});
    cached.will_need(5, 605);
    CHECK_EQ(file.cached().size(), 2);
    CHECK_EQ(cached.wait_for(5, 605), 0);
    CHECK(file.cached() == fixture::every(1, 5, 610));
  }
}

TEST(page_cache_of_a_file_that_is_truncated_meanwhile_can_be_queried) {
  const PageFile file(64);
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  file.read({0, 5, 40});
  CHECK_EQ(::truncate(file.path().c_str(), 4096 + 100), 0);
  CHECK(cached_pages_of(cached, 5, 59).empty());
  CHECK_EQ(cached.count(5, 59), 0);
  cached.will_need(0, 64);
  CHECK_EQ(cached.wait_for(0, 64), 0);
  CHECK(cached_pages_of(cached, 0, 64) == std::vector<uint32_t>({0, 1}));
  CHECK_EQ(cached.evict(), 0);
}

TEST(page_cache_of_an_empty_file_is_empty) {
  const PageFile file(0);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  CHECK_EQ(cached.pages(), 0);
  CHECK_EQ(cached.count(0, 1), 0);
  uint8_t is_cached = 7;
  CHECK_EQ(cached.map(0, 1, &is_cached), 0);
  cached.will_need(0, 1);
  CHECK_EQ(cached.wait_for(0, 1), 0);
  CHECK_EQ(cached.evict(), 0);
  CHECK(reap::mappings_of(cached.view()).empty());
}

TEST(page_cache_is_queried_for_regular_files_only) {
  const uint64_t descriptors = fixture::descriptors_here();
  const fixture::TempDir directory;
  CHECK_EQ(::mkfifo(directory.path("pipe").c_str(), 0600), 0);
  CHECK_EQ(reap::CachedFile().open(directory.path("pipe")), -EINVAL);
  CHECK_EQ(reap::CachedFile().open("/dev/zero"), -EINVAL);
  CHECK_EQ(reap::CachedFile().open(directory.root()), -EINVAL);
  CHECK_EQ(reap::CachedFile().open(directory.path("missing")), -ENOENT);
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(page_cache_finds_the_mappers_of_a_file_and_their_pages) {
  const PageFile file(2048);
  const PageFile other(2048);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  CHECK(reap::mappings_of(cached.view()).empty());
  const Mapper bystander(other.path());
  const Mapper mapper(file.path());
  const auto mappings = reap::mappings_of(cached.view());
  CHECK_EQ(mappings.size(), 1);
  if (mappings.size() != 1) return;
  CHECK_EQ(mappings[0].pid, mapper.pid());
  CHECK_EQ(mappings[0].bytes, 2048 * 4096);
  CHECK_EQ(mappings[0].offset, 0);
  reap::PageTable table;
  CHECK_EQ(table.open(mapper.pid()), 0);
  if (!file.evict()) SKIP(fixture::kNeedsEviction);
  const auto touched = [&] {
    std::vector<uint32_t> pages;
    CHECK_EQ(table.each(mappings[0],
                        [&](uint64_t page) { pages.push_back(static_cast<uint32_t>(page)); }),
             0);
    return pages;
  };
  CHECK(touched().empty());
  for (const uint32_t page : {2047, 0, 1024}) CHECK(mapper.touch(page));
  CHECK(touched() == std::vector<uint32_t>({0, 1024, 2047}));
}

TEST(page_cache_finds_no_pages_of_a_process_that_has_ended) {
  const PageFile file(64);
  Mapper mapper(file.path());
  CHECK(mapper.touch(5));
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  const auto mappings = reap::mappings_of(cached.view());
  CHECK_EQ(mappings.size(), 1);
  reap::PageTable table;
  CHECK_EQ(table.open(mapper.pid()), 0);
  const pid_t pid = mapper.pid();
  mapper.end();
  CHECK(reap::mappings_of(cached.view()).empty());
  for (const reap::FileMapping& mapping : mappings) {
    CHECK_EQ(table.each(mapping, [](uint64_t) { CHECK(false); }), 0);
  }
  CHECK_EQ(reap::PageTable().open(pid), -ENOENT);
}

// It would be mistaken for the VMM that it is about to exec.
TEST(page_cache_views_are_not_inherited_by_children) {
  const PageFile file(64);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(file.path()), 0);
  const PageFile other(1);
  const Mapper child(other.path());
  CHECK(reap::mappings_of(cached.view()).empty());
}

TEST(page_cache_of_a_file_on_overlayfs_is_that_of_the_underlying_file) {
  const fixture::TempDir folder;
  for (const char* part : {"lower", "upper", "work", "merged"}) {
    CHECK_EQ(::mkdir(folder.path(part).c_str(), 0700), 0);
  }
  const std::vector<uint8_t> bytes(64 * reap::kPage, 7);
  {
    const reap::UniqueFd file(
        ::open(folder.path("lower/file").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK_EQ(::write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
    CHECK_EQ(::fsync(file.get()), 0);  // which sync() through overlayfs does not
  }
  const std::string options = "lowerdir=" + folder.path("lower") +
                              ",upperdir=" + folder.path("upper") +
                              ",workdir=" + folder.path("work");
  const std::string merged = folder.path("merged");
  if (::mount("overlay", merged.c_str(), "overlay", 0, options.c_str()) != 0) {
    SKIP("needs root, and overlayfs");
  }
  {
    reap::CachedFile file;
    CHECK_EQ(file.open(folder.path("merged/file")), 0);
    CHECK_EQ(file.count(0, 64), 64);
    CHECK_EQ(file.evict(), 0);
    CHECK_EQ(file.count(0, 64), 0);
    file.will_need(3, 2);
    CHECK_EQ(file.wait_for(3, 2), 0);
    CHECK_EQ(file.count(0, 64), 2);
  }
  CHECK_EQ(::umount(merged.c_str()), 0);
}
