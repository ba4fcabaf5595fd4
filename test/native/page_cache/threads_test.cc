// Threads of the page cache's prefetcher and recorder: none to be had, and none to do work.
#include <cerrno>
#include <chrono>

#include "base/test_hooks.h"
#include "page_cache/prefetcher.h"
#include "page_cache/recorder.h"
#include "support/check.h"
#include "support/guest_fixture.h"
#include "support/page_cache_fixture.h"

namespace {

using fixture::PageFile;
using reap::ErrorCode;
using reap::PageCachePrefetcher;
using reap::PageCacheReport;

constexpr uint64_t kNoBudget = UINT64_MAX;

void run_job(PageCachePrefetcher& prefetcher, const PageFile& memory) {
  fixture::Flag ended;
  const auto end = [&ended](const PageCacheReport&) { ended.set(); };
  CHECK(prefetcher.start({memory.path()}, {}, kNoBudget, end) != 0);
  ended.wait();
}

}  // namespace

TEST(page_cache_prefetcher_without_a_thread_refuses_the_job_and_takes_the_next_one) {
  const fixture::Hooks hooks;
  const PageFile memory(8);
  PageCachePrefetcher prefetcher;
  reap::hooks::refuses_thread = [] { return true; };
  reap::Failure failure;
  const auto never = [](const PageCacheReport&) { CHECK(false); };
  CHECK_EQ(prefetcher.start({memory.path()}, {}, kNoBudget, never, &failure), 0);
  CHECK(failure.code == ErrorCode::native_unavailable);
  CHECK_EQ(failure.err, -EAGAIN);
  reap::hooks::refuses_thread = nullptr;
  run_job(prefetcher, memory);
}

TEST(page_cache_prefetcher_ends_its_thread_when_it_has_no_job) {
  const fixture::Hooks hooks;
  const PageFile memory(8);
  PageCachePrefetcher prefetcher;
  std::atomic<pid_t> worker{0};
  reap::hooks::before_page_cache_turn = [&] { worker = fixture::this_thread(); };
  for (int round = 0; round < 2; ++round) {
    run_job(prefetcher, memory);
    const std::string task = "/proc/self/task/" + std::to_string(worker);
    CHECK(fixture::in_time([&] { return ::access(task.c_str(), F_OK) != 0; }));
  }
}

TEST(page_cache_recorder_without_a_thread_does_not_start) {
  const fixture::Hooks hooks;
  const PageFile memory(8);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  reap::hooks::refuses_thread = [] { return true; };
  reap::PageCacheRecorder recorder;
  const reap::Failure failure = recorder.start({memory.path()}, std::chrono::microseconds(100));
  CHECK(failure.code == ErrorCode::native_unavailable);
  CHECK_EQ(failure.err, -EAGAIN);
}
