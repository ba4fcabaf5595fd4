// Reads and installs beyond the requested page: reading around a miss, and installing ahead of a
// guest that touches its memory in order.
#include "uffd/locality.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/page.h"
#include "files/cached_file.h"
#include "support/check.h"
#include "support/guest_fixture.h"
#include "support/page_cache_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Shape;
using reap::kPage;
using reap::ReadAround;

// A device that no machine has.
constexpr dev_t kNoDevice = 0;
constexpr uint64_t kFileBytes = uint64_t{1} << 40;

Shape of_pages(uint64_t pages) {
  Shape shape;
  shape.region_pages = {pages};
  return shape;
}

// Of the pages between two faults.
bool is_present(uint64_t, uint64_t) { return true; }
bool is_missing(uint64_t begin, uint64_t end) { return begin == end; }

uint64_t cached_pages_of(const std::string& path, uint64_t first, uint64_t count) {
  reap::CachedFile file;
  CHECK_EQ(file.open(path), 0);
  return file.count(first, count);
}

// Without the pages after it.
void read_page(const std::string& path, uint64_t page) {
  const reap::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  CHECK_EQ(::posix_fadvise(file.get(), 0, 0, POSIX_FADV_RANDOM), 0);
  uint8_t byte;
  CHECK_EQ(::pread(file.get(), &byte, 1, static_cast<off_t>(page * kPage)), 1);
}

uint64_t read_ahead_of(const std::string& path) {
  struct stat status {};
  CHECK_EQ(::stat(path.c_str(), &status), 0);
  return reap::device_read_ahead(status.st_dev);
}

}  // namespace

TEST(a_device_without_a_read_ahead_setting_has_the_kernels_default) {
  CHECK_EQ(reap::device_read_ahead(kNoDevice), 128 << 10);
}

TEST(a_miss_is_read_with_the_aligned_window_around_it) {
  ReadAround around(kNoDevice, kFileBytes);
  const ReadAround::Window window = around.on_miss((5 << 20) + (130 << 10));
  CHECK_EQ(window.offset, (5 << 20) + (128 << 10));
  CHECK_EQ(window.length, 128 << 10);
}

TEST(a_window_is_read_once) {
  ReadAround around(kNoDevice, kFileBytes);
  CHECK_EQ(around.on_miss(0).length, 128 << 10);
  CHECK_EQ(around.on_miss(4096).length, 0);
  CHECK_EQ(around.on_miss(128 << 10).length, 128 << 10);
}

TEST(reading_around_ends_after_256_mib_without_hits) {
  ReadAround around(kNoDevice, kFileBytes);
  uint64_t next = 0;
  const auto windows_until_the_end = [&] {
    uint64_t count = 0;
    while (around.on_miss(next).length > 0) {
      ++count;
      next += 1 << 20;
    }
    next += 1 << 20;
    return count;
  };
  CHECK_EQ(windows_until_the_end(), 2048);
  for (int hit = 0; hit < 3; ++hit) around.on_hit();
  CHECK_EQ(windows_until_the_end(), 3);
  // As on a file system that never reports a hit.
  for (uint64_t miss = 0; miss < 5; ++miss) around.on_miss(miss << 20);
  CHECK_EQ(windows_until_the_end(), 5);
}

TEST(reading_around_continues_while_each_miss_has_a_hit) {
  ReadAround around(kNoDevice, kFileBytes);
  for (uint64_t miss = 0; miss < 10'000; ++miss) {
    CHECK(around.on_miss(miss << 20).length > 0);
    around.on_hit();
  }
}

TEST(a_run_of_faults_continues_over_present_pages_without_counting_them) {
  reap::FaultRuns runs;
  uint64_t page = 10;
  for (uint64_t fault = 1; fault < 40; ++fault, page += 3) {
    const uint64_t ahead = std::min<uint64_t>(fault, 32) * kPage;
    CHECK_EQ(runs.on_fault(page * kPage, kPage, is_present), fault < 16 ? 0 : ahead);
  }
}

TEST(a_run_of_faults_ends_where_a_page_is_missing) {
  reap::FaultRuns runs;
  for (uint64_t page = 0; page < 15; ++page) runs.on_fault(page * kPage, kPage, is_missing);
  CHECK_EQ(runs.on_fault(16 * kPage, kPage, is_missing), 0);
  CHECK_EQ(runs.on_fault(15 * kPage, kPage, is_missing), 16 * kPage);
}

TEST(several_runs_of_faults_continue_independently) {
  reap::FaultRuns runs;
  for (uint64_t page = 0; page < 16; ++page) {
    for (uint64_t vcpu = 0; vcpu < 4; ++vcpu) {
      const uint64_t ahead = runs.on_fault((vcpu << 30) + page * kPage, kPage, is_missing);
      CHECK_EQ(ahead, page < 15 ? 0 : 16 * kPage);
    }
  }
}

TEST(a_guest_that_touches_its_pages_in_order_finds_the_next_ones_present) {
  Restore restore(of_pages(256));
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < 256; ++page) CHECK(restore.has_file_bytes(page));
  servers.stop();
  // 16, the last one with 16 more, then one with 17, with 18, … with 25. A vCPU may have faulted on
  // a page that was just being installed.
  CHECK(restore.get(Counter::faults) >= 26);
  CHECK(restore.get(Counter::faults) <= 26 + restore.get(Counter::present));
  CHECK_EQ(restore.get(Counter::installed), 256);
}

TEST(a_run_installs_one_page_ahead_for_each_of_its_faults) {
  Restore restore(of_pages(256));
  if (!restore.missing().empty()) SKIP(restore.missing());
  {
    Servers servers(*restore.handler);
    for (uint64_t i = 0; i < 16; ++i) {
      CHECK(restore.has_file_bytes(100 + i));
      if (i < 15) CHECK(restore.has_file_bytes(200 + i));
    }
  }
  CHECK(restore.guest.is_present(131));
  CHECK(!restore.guest.is_present(132));
  CHECK(!restore.guest.is_present(215));
  CHECK_EQ(restore.get(Counter::ahead), 16);
}

TEST(pages_installed_by_a_prefetch_make_no_run) {
  Restore restore(of_pages(256));
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(20 * kPage, 100 * kPage);
  CHECK(restore.fill(20, 100) == reap::FaultHandler::Filled::all);
  restore.handler->end_prefetch();
  {
    Servers servers(*restore.handler);
    for (const uint64_t page : {19, 120}) CHECK(restore.has_file_bytes(page));
  }
  CHECK_EQ(restore.get(Counter::ahead), 0);
}

TEST(nothing_is_installed_ahead_while_touches_are_recorded) {
  Restore restore(of_pages(64), true);
  if (!restore.missing().empty()) SKIP(restore.missing());
  {
    Servers servers(*restore.handler);
    for (uint64_t page = 0; page < 32; ++page) CHECK(restore.has_file_bytes(page));
  }
  CHECK_EQ(restore.get(Counter::ahead), 0);
  CHECK_EQ(restore.trace.take()->touches.size(), 32);
}

TEST(a_page_given_back_is_not_installed_ahead) {
  Restore restore(of_pages(64));
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  std::thread balloon([&] { CHECK(restore.guest.remove(20)); });
  balloon.join();
  for (uint64_t page = 0; page < 16; ++page) CHECK(restore.has_file_bytes(page));
  fixture::eventually([&] { return restore.get(Counter::ahead) == 15; });
  CHECK(restore.guest.is_present(31));
  CHECK(!restore.guest.is_present(20));
  CHECK(restore.is_zero(20));
}

TEST(holes_and_the_pages_after_them_are_installed_ahead) {
  Shape shape = of_pages(128);
  for (uint64_t page = 18; page < 60; ++page) shape.holes.push_back(page);
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < 128; ++page) {
    CHECK(page >= 18 && page < 60 ? restore.is_zero(page) : restore.has_file_bytes(page));
  }
  servers.stop();
  CHECK(restore.get(Counter::faults) < 32);
  CHECK_EQ(restore.get(Counter::zero), 42);
}

TEST(no_pages_of_a_changed_memory_file_are_installed_ahead) {
  fixture::Hooks hooks;
  Restore restore(of_pages(64));
  if (!restore.missing().empty()) SKIP(restore.missing());
  int installs = 0;
  reap::hooks::before_install = [&] {
    if (++installs < 16) return;
    const reap::UniqueFd file(::open(restore.path.c_str(), O_WRONLY | O_CLOEXEC));
    CHECK_EQ(::pwrite(file.get(), restore.bytes.data(), 4096, 20 * 4096), 4096);
  };
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < 16; ++page) CHECK(restore.has_file_bytes(page));
  servers.stop();
  CHECK_EQ(installs, 16);
  CHECK_EQ(restore.get(Counter::ahead), 0);
  CHECK_EQ(restore.get(Counter::installed), 16);
}

TEST(nothing_is_installed_ahead_beyond_the_last_page) {
  Restore restore(of_pages(16));
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < 16; ++page) CHECK(restore.has_file_bytes(page));
  servers.stop();
  CHECK_EQ(restore.get(Counter::ahead), 0);
}

TEST(a_fault_on_an_uncached_page_reads_its_neighbours_into_the_page_cache) {
  fixture::Hooks hooks;
  Restore restore(of_pages(1024));
  if (!restore.missing().empty()) SKIP(restore.missing());
  if (read_ahead_of(restore.path) < (128 << 10)) SKIP("needs a disk that reads ahead 128 KiB");
  const uint64_t window = (128 << 10) / kPage;
  fixture::forget_cached(restore.path);
  if (cached_pages_of(restore.path, 0, 1024) > 0) SKIP(fixture::kNeedsEviction);
  // The page is missed, and is there a moment later, as from a fast disk.
  reap::hooks::is_cold = [&, looks = 0]() mutable {
    if (looks++ > 0) return false;
    CHECK_EQ(cached_pages_of(restore.path, 600, 1), 0);
    read_page(restore.path, 600);
    CHECK_EQ(cached_pages_of(restore.path, 0, 1024), 1);
    return true;
  };
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(600));
  const uint64_t first = 600 / window * window;
  CHECK(fixture::in_time([&] { return cached_pages_of(restore.path, first, window) == window; }));
  servers.stop();
  CHECK_EQ(restore.get(Counter::installed), 1);
}

TEST(a_residual_fault_during_a_prefetch_reads_only_its_page) {
  Restore restore(of_pages(1024));
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(0, 4 * kPage);
  fixture::forget_cached(restore.path);
  if (cached_pages_of(restore.path, 0, 1024) > 0) SKIP(fixture::kNeedsEviction);
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(600));
  CHECK_EQ(cached_pages_of(restore.path, 0, 1024), 1);
}
