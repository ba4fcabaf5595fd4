// Reads of the memory file: cached or not, through or past the page cache, holes, its end.
#include "files/page_source.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

#include "base/page.h"
#include "files/cache_view.h"
#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using reap::kPage;

using Read = reap::PageSource::Read;

// A memory file in a new folder.
struct MemoryFile {
  explicit MemoryFile(const fixture::Shape& shape = {}, const std::string& directory = "")
      : folder(directory), path(folder.path("memory")), bytes(fixture::memory_bytes(shape)) {
    CHECK(fixture::write_memory_file(path, shape, bytes));
  }

  reap::PageSource open() const {
    reap::PageSource source;
    CHECK_EQ(source.open(path), 0);
    return source;
  }
  reap::UniqueFd descriptor(int flags = O_RDONLY) const {
    return reap::UniqueFd(::open(path.c_str(), flags | O_CLOEXEC));
  }

  const fixture::TempDir folder;
  const std::string path;
  const std::vector<uint8_t> bytes;
};

fixture::Shape of_pages(uint64_t pages) {
  fixture::Shape shape;
  shape.region_pages = {pages};
  return shape;
}

fixture::Shape sparse() {
  fixture::Shape shape = of_pages(64);
  for (uint64_t page = 16; page < 32; ++page) shape.holes.push_back(page);
  for (uint64_t page = 48; page < 64; ++page) shape.holes.push_back(page);
  return shape;
}

// Buffers for O_DIRECT are page-aligned.
reap::Mapping room(uint64_t pages) { return reap::Mapping::anonymous(pages * kPage); }

void read_everything(const std::string& directory) {
  check::about = directory.empty() ? "a disk" : directory;
  const MemoryFile file(sparse(), directory);
  fixture::forget_cached(file.path);
  const reap::PageSource source = file.open();
  CHECK_EQ(source.bytes(), file.bytes.size());

  const reap::Mapping buffer = room(64);
  const auto same = [&](uint64_t page, uint64_t pages) {
    return std::memcmp(buffer.data(), file.bytes.data() + page * kPage, pages * kPage) == 0;
  };
  // Whether it succeeds depends on the page cache; the bytes do not.
  const Read cached = source.read_cached(kPage, buffer.data(), kPage).read;
  CHECK(cached == Read::would_block || (cached == Read::done && same(1, 1)));
  CHECK(source.read_streaming(2 * kPage, buffer.data(), 20 * kPage).read == Read::done);
  CHECK(same(2, 20));
  CHECK(source.read_streaming(0, buffer.data(), 64 * kPage).read == Read::done);
  CHECK(same(0, 64));
  CHECK(source.read(40 * kPage, buffer.data(), 24 * kPage).read == Read::done);
  CHECK(same(40, 24));
  source.will_need(0, 64 * kPage);
  CHECK(source.read(3 * kPage, buffer.data(), kPage).read == Read::done);
  // tmpfs does not support it (EOPNOTSUPP), which means: wait.
  const Read again = source.read_cached(3 * kPage, buffer.data(), kPage).read;
  CHECK(directory.empty() ? again == Read::done : again != Read::failed);
  CHECK(same(3, 1));
  CHECK(source.read_streaming(3 * kPage, buffer.data(), kPage).read == Read::done);
  CHECK(same(3, 1));
}

}  // namespace

TEST(a_page_source_reads_the_bytes_of_a_file_on_a_disk) { read_everything(""); }

TEST(a_page_source_reads_the_bytes_of_a_file_without_direct_io) {
  if (::access("/dev/shm", W_OK) != 0) SKIP("needs /dev/shm");
  read_everything("/dev/shm");
}

TEST(a_page_source_finds_the_holes_of_a_sparse_file) {
  const MemoryFile file(sparse());
  const reap::PageSource source = file.open();
  struct stat status {};
  CHECK_EQ(::stat(file.path.c_str(), &status), 0);
  if (status.st_blocks * 512 >= status.st_size) SKIP("needs a file system with sparse files");

  const reap::DataMap& data = source.data_map(source.stamp());
  CHECK_EQ(data.hole_end(0), 0);
  CHECK_EQ(data.hole_end(15 * kPage), 15 * kPage);
  CHECK_EQ(data.hole_end(16 * kPage), 32 * kPage);
  CHECK_EQ(data.hole_end(20 * kPage), 32 * kPage);
  CHECK_EQ(data.hole_end(32 * kPage), 32 * kPage);
  CHECK_EQ(data.hole_end(48 * kPage), 64 * kPage);
  CHECK_EQ(data.hole_end(63 * kPage), 64 * kPage);
  CHECK_EQ(data.data_end(0), 16 * kPage);
  CHECK_EQ(data.data_end(40 * kPage), 48 * kPage);
  // A file that has changed since has data everywhere: nothing is known of its holes.
  CHECK_EQ(::truncate(file.path.c_str(), 50 * kPage), 0);
  const reap::DataMap& changed = source.data_map(source.current_stamp());
  CHECK_EQ(changed.hole_end(20 * kPage), 20 * kPage);
  CHECK_EQ(changed.data_end(20 * kPage), 64 * kPage);
}

TEST(a_hole_that_was_written_to_counts_as_data_though_the_time_was_set_back) {
  const MemoryFile file(sparse());
  const reap::PageSource source = file.open();
  if (source.data_map(source.stamp()).hole_end(20 * kPage) == 20 * kPage) {
    SKIP("needs a file system with sparse files");
  }
  struct stat status {};
  CHECK_EQ(::stat(file.path.c_str(), &status), 0);
  const reap::UniqueFd writer = file.descriptor(O_WRONLY);
  CHECK_EQ(::pwrite(writer.get(), "x", 1, 20 * kPage), 1);
  const timespec times[2] = {status.st_atim, status.st_mtim};
  CHECK_EQ(::futimens(writer.get(), times), 0);
  CHECK_EQ(source.data_map(source.current_stamp()).hole_end(20 * kPage), 20 * kPage);
}

TEST(holes_are_not_looked_for_in_a_file_that_may_still_be_written) {
  fixture::Hooks hooks;
  const MemoryFile file(sparse());
  const auto has_holes = [&file] {
    const reap::PageSource source = file.open();
    return source.data_map(source.stamp()).hole_end(20 * kPage) > 20 * kPage;
  };
  reap::hooks::is_young = [] { return true; };
  CHECK(!has_holes());
  reap::hooks::is_young = nullptr;
  const reap::UniqueFd writer = file.descriptor(O_WRONLY);
  CHECK(!has_holes());
}

TEST(a_page_source_finds_no_holes_in_a_full_file) {
  const MemoryFile file;
  const reap::PageSource source = file.open();
  const reap::DataMap& data = source.data_map(source.stamp());
  CHECK_EQ(data.hole_end(5 * kPage), 5 * kPage);
  CHECK_EQ(data.data_end(5 * kPage), 64 * kPage);
}

TEST(a_read_past_the_end_of_a_file_is_reported_as_short) {
  for (const char* directory : {"", "/dev/shm"}) {
    if (*directory && ::access(directory, W_OK) != 0) continue;
    for (const uint64_t size : {10 * kPage, 10 * kPage + 100, uint64_t{0}}) {
      check::about = std::string(directory) + " cut to " + std::to_string(size);
      const MemoryFile file({}, directory);
      fixture::forget_cached(file.path);
      const reap::PageSource source = file.open();
      CHECK_EQ(::truncate(file.path.c_str(), static_cast<off_t>(size)), 0);
      const reap::Mapping buffer = room(16);
      for (const uint64_t page : {0, 8, 9, 10, 11, 40}) {
        if (page * kPage + 8 * kPage <= size) continue;
        const uint64_t at = page * kPage;
        CHECK(source.read(at, buffer.data(), 8 * kPage).read == Read::cut_short);
        CHECK(source.read_streaming(at, buffer.data(), 8 * kPage).read == Read::cut_short);
        CHECK(source.read_cached(at, buffer.data(), 8 * kPage).read != Read::done);
      }
    }
  }
}

TEST(a_streaming_read_does_not_change_the_page_cache) {
  const MemoryFile file(of_pages(512));
  fixture::forget_cached(file.path);
  const reap::UniqueFd descriptor = file.descriptor();
  const int64_t before = reap::cached_pages(descriptor.get(), 0, 512);
  if (before < 0) SKIP("needs cachestat(2), of Linux 6.5");
  if (before > 0) SKIP("needs a file system that lets go of a file's pages");
  if (!file.descriptor(O_RDONLY | O_DIRECT)) SKIP("needs a file system with O_DIRECT");
  const reap::PageSource source = file.open();
  const reap::Mapping buffer = room(256);
  for (const uint64_t page : {0, 256}) {
    CHECK(source.read_streaming(page * kPage, buffer.data(), 256 * kPage).read == Read::done);
  }
  CHECK_EQ(reap::cached_pages(descriptor.get(), 0, 512), 0);
}

TEST(a_streaming_read_waits_for_pages_that_are_being_read_and_does_not_read_them_twice) {
  fixture::Hooks hooks;
  const MemoryFile file(of_pages(256));
  const reap::UniqueFd descriptor = file.descriptor();
  const int64_t there = reap::cached_pages(descriptor.get(), 0, 256);
  if (there < 0) SKIP("needs cachestat(2), of Linux 6.5");
  if (there < 256) SKIP("needs a file system that keeps what was written in the page cache");
  ::fsync(descriptor.get());
  const auto bytes_read = [] {
    struct rusage usage {};
    ::getrusage(RUSAGE_THREAD, &usage);
    return static_cast<uint64_t>(usage.ru_inblock) * 512;
  };
  const reap::PageSource source = file.open();
  const reap::Mapping buffer = room(256);
  for (const bool unfinished : {false, true}) {
    reap::hooks::is_cold = [&] { return unfinished; };
    const uint64_t before = bytes_read();
    const reap::PageSource::Result read = source.read_streaming(0, buffer.data(), 256 * kPage);
    CHECK(read.read == Read::done);
    CHECK_EQ(read.waited, unfinished);
    // Zero, except for pages of this program that the kernel has dropped.
    CHECK(bytes_read() - before < file.bytes.size() / 2);
    CHECK_EQ(std::memcmp(buffer.data(), file.bytes.data(), file.bytes.size()), 0);
  }
  fixture::forget_cached(file.path);
  if (reap::cached_pages(descriptor.get(), 0, 256) > 0)
    SKIP("needs a file system that lets go of pages");
  reap::hooks::is_cold = nullptr;
  CHECK(source.read_streaming(0, buffer.data(), 256 * kPage).waited);
}

// By the flags of its mapping (proc(5), smaps).
static bool asks_for_huge_pages(const void* data) {
  std::ifstream maps("/proc/self/smaps");
  const auto address = reinterpret_cast<uintptr_t>(data);
  bool is_cached = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t first = 0, end = 0;
    char dash = 0;
    std::istringstream words(line);
    if (words >> std::hex >> first >> dash >> end && dash == '-') {
      is_cached = first <= address && address < end;
    }
    if (is_cached && line.rfind("VmFlags:", 0) == 0) return line.find(" hg") != std::string::npos;
  }
  return false;
}

TEST(a_read_buffer_of_at_least_a_huge_page_asks_for_huge_pages) {
  constexpr size_t kHuge = 2 << 20;
  const bool kernel_has_huge_pages =
      ::access("/sys/kernel/mm/transparent_hugepage/enabled", F_OK) == 0;
  for (const size_t size : {kHuge, 3 * kHuge, kHuge + kPage}) {
    const reap::Mapping before = reap::Mapping::anonymous(kPage);
    const reap::Mapping buffer = reap::Mapping::buffer(size);
    CHECK(buffer);
    CHECK_EQ(buffer.size(), size);
    CHECK_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kHuge, 0);
    CHECK(asks_for_huge_pages(buffer.data()) || !kernel_has_huge_pages);
    std::memset(buffer.data(), 1, size);
  }
  const reap::Mapping small = reap::Mapping::buffer(kPage);
  CHECK_EQ(small.size(), kPage);
  small.data()[kPage - 1] = 1;
}

TEST(a_page_source_opens_regular_files_only) {
  reap::PageSource source;
  CHECK_EQ(source.open("/dev/zero"), -EINVAL);
  CHECK_EQ(source.open("/nowhere/at/all"), -ENOENT);
  const fixture::TempDir temporary;
  CHECK(source.open(temporary.root()) < 0);
}

// Without this a guest gets half of one snapshot and half of another.
TEST(a_file_that_is_replaced_while_it_is_opened_is_read_through_one_descriptor) {
  fixture::Hooks hooks;
  const fixture::Shape shape = of_pages(256);
  const MemoryFile file(shape);
  const std::string other = file.folder.path("other");
  std::vector<uint8_t> inverted;
  for (const uint8_t byte : file.bytes) inverted.push_back(static_cast<uint8_t>(~byte));
  CHECK(fixture::write_memory_file(other, shape, inverted));
  reap::hooks::before_direct_open = [&] {
    CHECK_EQ(::rename(other.c_str(), file.path.c_str()), 0);
  };
  fixture::forget_cached(file.path);
  const reap::PageSource source = file.open();
  const reap::Mapping buffer = room(256);
  CHECK(source.read_streaming(0, buffer.data(), file.bytes.size()).read == Read::done);
  CHECK_EQ(std::memcmp(buffer.data(), file.bytes.data(), file.bytes.size()), 0);
}

TEST(a_named_pipe_is_refused_without_waiting_for_a_writer) {
  const fixture::TempDir temporary;
  const std::string path = temporary.path("pipe");
  CHECK_EQ(::mkfifo(path.c_str(), 0600), 0);
  reap::PageSource source;
  CHECK_EQ(source.open(path), -EINVAL);
}
