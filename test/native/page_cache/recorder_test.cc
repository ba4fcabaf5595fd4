// Recordings of the page cache: pages read and mapped between two marks, in their order.
#include "page_cache/recorder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "support/check.h"
#include "support/page_cache_fixture.h"

namespace {

using fixture::Mapper;
using fixture::PageFile;
using reap::PageCacheRecorder;
using Touches = std::vector<PageCacheRecorder::Touch>;

constexpr std::chrono::microseconds kInterval{100};

std::vector<uint32_t> pages_of(const Touches& touches, uint32_t file = 0) {
  std::vector<uint32_t> pages;
  for (const auto& touch : touches) {
    if (touch.file == file) pages.push_back(touch.page);
  }
  return pages;
}

std::vector<uint32_t> sorted(std::vector<uint32_t> pages) {
  std::sort(pages.begin(), pages.end());
  return pages;
}

bool rise(const Touches& touches) {
  return std::is_sorted(touches.begin(), touches.end(),
                        [](const auto& a, const auto& b) { return a.time_us < b.time_us; });
}

// Counts the recorder's looks. Constructed before the recorder.
class Looks {
 public:
  Looks() {
    reap::hooks::after_look = [this] {
      descriptors_ = fixture::descriptors_here();
      ++looks_;
    };
  }
  // Waits for a look that began after this call.
  void another() const {
    const int before = looks_;
    CHECK(fixture::in_time([&] { return looks_ >= before + 2; }));
  }
  // Number at the end of the last look, when its temporary ones are closed.
  uint64_t descriptors() const { return descriptors_; }

 private:
  fixture::Hooks hooks_;
  std::atomic<uint64_t> descriptors_{0};
  std::atomic<int> looks_{0};
};

}  // namespace

TEST(page_cache_recorder_finds_pages_read_between_the_marks_in_their_order) {
  const PageFile memory(2048);
  const PageFile disk(600);
  memory.read({7, 8});
  if (!memory.evict() || !disk.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({7, 9});
  const Looks looks;
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path(), disk.path()}, kInterval));
  CHECK(memory.cached().empty());
  looks.another();
  memory.read({1030});
  looks.another();
  disk.read({599});
  looks.another();
  memory.read({12, 9, 1030});
  disk.read({0});
  looks.another();
  memory.read({2047});
  const PageCacheRecorder::Record record = recorder.stop();
  memory.read({500});

  CHECK(rise(record.cached));
  CHECK(pages_of(record.cached, 1) == std::vector<uint32_t>({599, 0}));
  std::vector<uint32_t> memory_pages = pages_of(record.cached);
  CHECK_EQ(memory_pages.size(), 4);
  if (memory_pages.size() != 4) return;
  // A look between the two reads sees them in the other order.
  std::sort(memory_pages.begin() + 1, memory_pages.begin() + 3);
  CHECK(memory_pages == std::vector<uint32_t>({1030, 9, 12, 2047}));
  CHECK_EQ(record.cached[0].page, 1030);
  CHECK_EQ(record.cached[1].page, 599);
  CHECK(record.cached[0].time_us < record.cached[1].time_us);
  CHECK(record.mapped.empty());
  CHECK_EQ(record.mapper, 0);
  CHECK_EQ(record.mapper_error, 0);
  CHECK(record.looks >= 9);
}

TEST(page_cache_recorder_has_closed_its_files_when_it_returns_its_record) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Mapper mapper(memory.path());
  const uint64_t descriptors = fixture::descriptors_here();
  const Looks looks;
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  CHECK(mapper.touch(3));
  looks.another();
  // The file and a page table, and descriptors that a look opens briefly.
  CHECK(fixture::descriptors_here() >= descriptors + 2);
  recorder.stop();
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(page_cache_recorder_finds_the_same_without_cachestat) {
  const PageFile memory(2048);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  reap::hooks::lacks_cachestat = [] { return true; };
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  for (const uint32_t page : {1030, 12, 1031}) {
    memory.read({page});
    looks.another();
  }
  CHECK(pages_of(recorder.stop().cached) == std::vector<uint32_t>({1030, 12, 1031}));
}

TEST(page_cache_recorder_finds_a_page_whose_read_ends_after_a_look) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  std::atomic<bool> is_slow{true};
  reap::hooks::reads_are_unfinished = [&] { return is_slow.load(); };
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  memory.read({5});
  looks.another();
  is_slow = false;
  looks.another();
  memory.read({6});
  const PageCacheRecorder::Record record = recorder.stop();
  CHECK(pages_of(record.cached) == std::vector<uint32_t>({5, 6}));
  CHECK_EQ(record.cached.size(), 2);
  if (record.cached.size() == 2) CHECK(record.cached[0].time_us < record.cached[1].time_us);
}

TEST(page_cache_recorder_finds_a_page_that_replaced_another) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  fixture::Hooks hooks;
  fixture::Hold hold;
  std::atomic<bool> has_read{false};
  // The second one, since the first one may have begun before.
  reap::hooks::after_look = [&, looks = 0]() mutable {
    if (has_read && ++looks == 2) hold();
  };
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  memory.read({5});
  has_read = true;
  hold.wait_until_held();
  CHECK(memory.evict());
  memory.read({6});
  hold.release();
  CHECK(pages_of(recorder.stop().cached) == std::vector<uint32_t>({5, 6}));
}

TEST(page_cache_recorder_finds_mapped_pages_and_not_those_that_were_only_read) {
  const PageFile memory(2048);
  const Mapper mapper(memory.path());
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  memory.read({300, 301});
  looks.another();
  CHECK(mapper.touch(1500));
  looks.another();
  CHECK(mapper.touch(40));
  memory.read({41});
  looks.another();
  CHECK(mapper.touch(2047));
  const PageCacheRecorder::Record record = recorder.stop();
  CHECK(pages_of(record.mapped) == std::vector<uint32_t>({1500, 40, 2047}));
  CHECK(rise(record.mapped));
  CHECK(sorted(pages_of(record.cached)) == std::vector<uint32_t>({40, 41, 300, 301, 1500, 2047}));
  CHECK_EQ(record.mapper, mapper.pid());
  CHECK_EQ(record.mapper_error, 0);
}

TEST(page_cache_recorder_reports_no_mapper_that_has_touched_nothing) {
  const PageFile memory(64);
  const Mapper mapper(memory.path());
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  memory.read({5});
  looks.another();
  const PageCacheRecorder::Record record = recorder.stop();
  CHECK_EQ(record.mapper, 0);
  CHECK(record.mapped.empty());
  CHECK(pages_of(record.cached) == std::vector<uint32_t>({5}));
}

TEST(page_cache_recorder_is_not_disturbed_by_a_mapper_that_ends) {
  const PageFile memory(64);
  Mapper mapper(memory.path());
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  // It is known to map the file, and has exited when its page table is opened.
  bool is_first = true;
  reap::hooks::before_page_tables = [&] {
    if (is_first) mapper.end();
    is_first = false;
  };
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  looks.another();
  const PageCacheRecorder::Record record = recorder.stop();
  CHECK(!is_first);
  CHECK_EQ(record.mapper, 0);
  CHECK_EQ(record.mapper_error, 0);
}

// An orchestrator's child, before and after its exec of the VMM: the pid stays, the memory does
// not.
TEST(page_cache_recorder_follows_a_process_into_another_program) {
  const fixture::TempDir directory;
  const std::string program = directory.path("cat");
  {
    const reap::UniqueFd from(::open("/bin/cat", O_RDONLY | O_CLOEXEC));
    const reap::UniqueFd to(::open(program.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0700));
    struct stat status {};
    if (!from || ::fstat(from.get(), &status) != 0) SKIP("needs /bin/cat");
    std::vector<char> bytes(static_cast<size_t>(status.st_size));
    CHECK_EQ(::read(from.get(), bytes.data(), bytes.size()), bytes.size());
    CHECK_EQ(::write(to.get(), bytes.data(), bytes.size()), bytes.size());
  }
  const Mapper mapper(program);
  const Looks looks;
  PageCacheRecorder recorder;
  const reap::Failure failure = recorder.start({program}, kInterval);
  if (failure) SKIP(fixture::kNeedsEviction);
  looks.another();
  if (!mapper.become(program)) SKIP("needs a temporary folder with programs that run");
  const PageCacheRecorder::Record record = recorder.stop();
  CHECK_EQ(record.mapper, mapper.pid());
  CHECK(!record.mapped.empty());
}

TEST(page_cache_recorder_keeps_no_descriptor_of_mappers_that_ended) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  std::atomic<int> searches{0};
  reap::hooks::before_page_tables = [&] { ++searches; };
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path()}, kInterval));
  const auto search_again = [&] {
    const int before = searches;
    CHECK(fixture::in_time([&] { return searches >= before + 2; }));
    looks.another();
  };
  search_again();
  const uint64_t descriptors = looks.descriptors();
  {
    const Mapper mapper(memory.path());
    CHECK(mapper.touch(9));
    search_again();
    CHECK(looks.descriptors() > descriptors + 1);
  }
  search_again();
  CHECK_EQ(looks.descriptors(), descriptors);
  CHECK(pages_of(recorder.stop().mapped) == std::vector<uint32_t>({9}));
}

TEST(page_cache_recorder_refuses_a_file_that_a_process_has_mapped) {
  const PageFile memory(64);
  const PageFile disk(64);
  if (!memory.evict() || !disk.evict()) SKIP(fixture::kNeedsEviction);
  const Mapper mapper(disk.path());
  CHECK(mapper.touch(5));
  PageCacheRecorder recorder;
  const reap::Failure failure = recorder.start({memory.path(), disk.path()}, kInterval);
  CHECK(failure.code == reap::ErrorCode::page_cache);
  CHECK_EQ(failure.check, "mapped");
  CHECK_EQ(failure.offset, 1);
  CHECK_EQ(failure.got, mapper.pid());
}

TEST(page_cache_recorder_refuses_a_file_that_cannot_be_evicted) {
  if (::access("/dev/shm", W_OK) != 0) SKIP("needs /dev/shm");
  const PageFile memory(16, "/dev/shm");
  PageCacheRecorder recorder;
  const reap::Failure failure = recorder.start({memory.path()}, kInterval);
  CHECK(failure.code == reap::ErrorCode::page_cache);
  CHECK_EQ(failure.check, "stays");
  CHECK_EQ(failure.offset, 0);
  CHECK_EQ(failure.got, 16);
}

TEST(page_cache_recorder_refuses_a_file_that_is_hidden) {
  fixture::Hooks hooks;
  reap::hooks::hides_residency = [] { return true; };
  const PageFile memory(16);
  PageCacheRecorder recorder;
  const reap::Failure failure = recorder.start({memory.path()}, kInterval);
  CHECK(failure.code == reap::ErrorCode::page_cache);
  CHECK_EQ(failure.check, "hidden");
  CHECK_EQ(failure.offset, 0);
}

TEST(page_cache_recorder_reports_which_file_cannot_be_opened) {
  const uint64_t descriptors = fixture::descriptors_here();
  const PageFile memory(16);
  {
    PageCacheRecorder recorder;
    const reap::Failure failure =
        recorder.start({memory.path(), memory.path() + "-missing"}, kInterval);
    CHECK(failure.code == reap::ErrorCode::source_read);
    CHECK_EQ(failure.err, -ENOENT);
    CHECK_EQ(failure.offset, 1);
  }
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(page_cache_recorder_accepts_empty_and_truncated_files) {
  const PageFile memory(0);
  const PageFile disk(1024);
  if (!disk.evict()) SKIP(fixture::kNeedsEviction);
  const Looks looks;
  PageCacheRecorder recorder;
  CHECK(!recorder.start({memory.path(), disk.path()}, kInterval));
  disk.read({0, 1000});
  looks.another();
  CHECK_EQ(::truncate(disk.path().c_str(), 4096), 0);
  looks.another();
  CHECK(sorted(pages_of(recorder.stop().cached, 1)) == std::vector<uint32_t>({0, 1000}));
}

TEST(page_cache_recorder_stops_when_it_is_destroyed) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  const uint64_t threads = fixture::threads_here();
  const uint64_t descriptors = fixture::descriptors_here();
  {
    PageCacheRecorder recorder;
    CHECK(!recorder.start({memory.path()}, std::chrono::microseconds(100000000)));
  }
  CHECK(fixture::in_time([&] { return fixture::threads_here() <= threads; }));
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}
