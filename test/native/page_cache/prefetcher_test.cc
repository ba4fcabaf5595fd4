// Prefetches into the page cache: their order, their effect, and their ends.
#include "page_cache/prefetcher.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <optional>

#include "support/check.h"
#include "support/page_cache_fixture.h"

namespace {

using fixture::PageFile;
using reap::PageCachePlan;
using reap::PageCachePrefetcher;
using reap::PageCacheReport;

constexpr uint64_t kNoBudget = UINT64_MAX;
constexpr uint32_t kExtentsInTurn = 256;

// As text, so that a check prints it: file:page+pages.
std::string text_of(const std::vector<reap::FileExtent>& extents) {
  std::string text;
  for (const auto& extent : extents) {
    text += (text.empty() ? "" : " ") + std::to_string(extent.file) + ":" +
            std::to_string(extent.first_page) + "+" + std::to_string(extent.page_count);
  }
  return text;
}

PageCachePlan touches(const std::vector<uint32_t>& pages) {
  PageCachePlan plan;
  for (const uint32_t page : pages) {
    plan.touches.push_back({page, static_cast<uint32_t>(plan.touches.size())});
  }
  return plan;
}

// The end of a job, which is reported once.
class End {
 public:
  PageCachePrefetcher::Done done() {
    return [this](const PageCacheReport& report) {
      CHECK(!ended_.is_set());
      report_ = report;
      ended_.set();
    };
  }
  bool has_come() const { return ended_.is_set(); }
  const PageCacheReport& wait() const {
    ended_.wait();
    return report_;
  }

 private:
  fixture::Flag ended_;
  PageCacheReport report_;
};

PageCacheReport bring_in(const std::vector<std::string>& paths, PageCachePlan plan,
                         uint64_t budget_bytes = kNoBudget) {
  End end;
  PageCachePrefetcher prefetcher;
  prefetcher.start(paths, std::move(plan), budget_bytes, end.done());
  return end.wait();
}

// Holds the prefetcher's thread at the start of one turn, counted from 1.
class HeldTurn {
 public:
  explicit HeldTurn(int turn) {
    reap::hooks::before_page_cache_turn = [this, turn] {
      if (++turns_ == turn) hold_();
    };
  }
  void wait() const { hold_.wait_until_held(); }
  void release() { hold_.release(); }

 private:
  fixture::Hooks hooks_;
  std::atomic<int> turns_{0};
  fixture::Hold hold_;
};

}  // namespace

TEST(page_cache_plan_sorts_and_merges_windows_of_touches) {
  CHECK_EQ(text_of(touches({9, 3, 5, 4, 10}).extents()), "0:3+3 0:9+2");
  CHECK_EQ(text_of(touches({}).extents()), "");
  // 256 touches are one window: later ones are neither sorted before nor merged with it.
  std::vector<uint32_t> pages = fixture::every(1, 1000, 1256);
  for (const uint32_t page : {1257, 1256, 0}) pages.push_back(page);
  CHECK_EQ(text_of(touches(pages).extents()), "0:1000+256 0:0+1 0:1256+2");
  CHECK_EQ(text_of(touches({UINT32_MAX, 0}).extents()), "0:0+1 0:4294967295+1");
}

TEST(page_cache_plan_splits_each_touch_of_2_mib_into_pieces_of_1_mib) {
  PageCachePlan plan = touches({1024, 0, 512});
  plan.pages_per_touch = 512;
  CHECK_EQ(text_of(plan.extents()), "0:1024+256 0:1280+256 0:0+256 0:256+256 0:512+256 0:768+256");
}

TEST(page_cache_plan_merges_disks_and_touches_by_their_times) {
  PageCachePlan plan;
  for (uint32_t i = 0; i < 512; ++i) plan.touches.push_back({i, 10 * i});
  plan.disk_extents = {{0, 7, 2, 0}, {1, 3, 1, 2559}, {0, 50, 4, 2560}, {0, 90, 1, 9000}};
  CHECK_EQ(text_of(plan.extents()), "1:7+2 0:0+256 2:3+1 1:50+4 0:256+256 1:90+1");
  plan.touches.clear();
  CHECK_EQ(text_of(plan.extents()), "1:7+2 2:3+1 1:50+4 1:90+1");
}

TEST(page_cache_plan_keeps_the_order_of_touches_whose_times_do_not_rise) {
  PageCachePlan plan;
  constexpr uint32_t kTimes[] = {0, 900, 100};
  for (uint32_t i = 0; i < 768; ++i) plan.touches.push_back({i, kTimes[i / 256]});
  plan.disk_extents = {{0, 1, 1, 50}, {0, 3, 1, 500}, {0, 5, 1, 950}};
  CHECK_EQ(text_of(plan.extents()), "0:0+256 1:1+1 1:3+1 0:256+256 0:512+256 1:5+1");
}

TEST(page_cache_prefetcher_brings_in_the_plan_and_nothing_else) {
  const PageFile memory(2048), disk(600, "", 100), unused(64);
  if (!memory.evict() || !disk.evict() || !unused.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({41, 700});
  PageCachePlan plan = touches({1500, 40, 42, 41});
  // The last one extends past the end of its file, one begins there, and one has no file.
  plan.disk_extents = {{0, 10, 5, 0}, {0, 598, 10, 1}, {0, 600, 5, 2}, {7, 0, 5, 3}};
  const PageCacheReport report =
      bring_in({memory.path(), disk.path(), unused.path()}, std::move(plan));
  CHECK(!report.failure);
  CHECK(memory.cached() == std::vector<uint32_t>({40, 41, 42, 700, 1500}));
  CHECK(disk.cached() == std::vector<uint32_t>({10, 11, 12, 13, 14, 598, 599}));
  CHECK(unused.cached().empty());
  CHECK_EQ(report.pages, 4 + 5 + 2);
  CHECK_EQ(report.resident, 1);
  CHECK_EQ(report.fetched_pages, 10);
  CHECK_EQ(report.extents, 4);
  CHECK(report.in_budget);
  CHECK(!report.cancelled);
  CHECK(report.submitted_us <= report.completed_us);
}

TEST(page_cache_prefetcher_requests_no_cached_pages) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({5, 6, 7, 20});
  const PageCacheReport report = bring_in({memory.path()}, touches({5, 6, 7, 20}));
  CHECK_EQ(report.pages, 4);
  CHECK_EQ(report.resident, 4);
  CHECK_EQ(report.fetched_pages, 0);
  CHECK_EQ(report.extents, 0);
}

TEST(page_cache_prefetcher_brings_in_a_file_that_is_hidden) {
  fixture::Hooks hooks;
  reap::hooks::hides_residency = [] { return true; };
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({6});
  const PageCacheReport report = bring_in({memory.path()}, touches({5, 6, 7, 20}));
  CHECK_EQ(report.pages, 4);
  CHECK_EQ(report.resident, 0);
  CHECK_EQ(report.fetched_pages, 4);
  CHECK(memory.cached() == std::vector<uint32_t>({5, 6, 7, 20}));
}

TEST(page_cache_prefetcher_ends_when_every_page_is_cached) {
  fixture::Hooks hooks;
  reap::hooks::drops_readahead = [] { return true; };
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({39});
  CHECK_EQ(bring_in({memory.path()}, touches(fixture::every(1, 20, 40))).fetched_pages, 19);
  CHECK(memory.cached() == fixture::every(1, 20, 40));
}

TEST(page_cache_prefetcher_stops_at_its_budget) {
  const PageFile memory(64), disk(64);
  if (!memory.evict() || !disk.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({20});
  PageCachePlan plan;
  // In one window in page order, with one that is cached and costs nothing.
  plan.touches = {{30, 0}, {31, 0}, {32, 0}, {10, 0}, {11, 0}, {20, 0}};
  plan.disk_extents = {{0, 1, 2, 0}, {0, 40, 1, 9}};
  const PageCacheReport report = bring_in({memory.path(), disk.path()}, plan, 5 * 4096 + 4095);
  CHECK(!report.in_budget);
  CHECK(!report.failure);
  CHECK_EQ(report.fetched_pages, 4);
  CHECK_EQ(report.pages, 5);
  CHECK_EQ(report.resident, 1);
  CHECK(memory.cached() == std::vector<uint32_t>({10, 11, 20}));
  CHECK(disk.cached() == std::vector<uint32_t>({1, 2}));
  memory.read({30, 31});
  const PageCacheReport all = bring_in({memory.path(), disk.path()}, plan, 2 * 4096);
  CHECK(all.in_budget);
  CHECK_EQ(all.fetched_pages, 2);
}

TEST(page_cache_prefetcher_cancels_before_the_first_request) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(1);
  End end;
  PageCachePrefetcher prefetcher;
  const uint64_t job = prefetcher.start({memory.path()}, touches({5}), kNoBudget, end.done());
  turn.wait();
  prefetcher.cancel(job + 1);
  prefetcher.cancel(job);
  turn.release();
  CHECK(end.wait().cancelled);
  CHECK_EQ(end.wait().pages, 0);
  CHECK(memory.cached().empty());
  prefetcher.cancel(job);
}

TEST(page_cache_prefetcher_cancels_between_two_turns) {
  const PageFile memory(1024);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(2);
  End end, other;
  PageCachePrefetcher prefetcher;
  const uint64_t job =
      prefetcher.start({memory.path()}, touches(fixture::every(2, 0, 2 * kExtentsInTurn + 100)),
                       kNoBudget, end.done());
  turn.wait();
  prefetcher.start({memory.path()}, touches({1001}), kNoBudget, other.done());
  prefetcher.cancel(job);
  turn.release();
  CHECK(end.wait().cancelled);
  CHECK_EQ(end.wait().extents, kExtentsInTurn);
  CHECK(!other.wait().cancelled);
  CHECK_EQ(other.wait().fetched_pages, 1);
}

// The first turn requests everything, the second one waits.
TEST(page_cache_prefetcher_cancels_the_wait) {
  const PageFile memory(1024);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(2);
  End end;
  PageCachePrefetcher prefetcher;
  const uint64_t job =
      prefetcher.start({memory.path()}, touches(fixture::every(2, 0, 2 * kExtentsInTurn + 2)),
                       kNoBudget, end.done());
  turn.wait();
  prefetcher.cancel(job);
  turn.release();
  CHECK(end.wait().cancelled);
}

TEST(page_cache_prefetcher_lets_jobs_take_turns) {
  const PageFile memory(4096), disk(64);
  if (!memory.evict() || !disk.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(1);
  End longer, shorter;
  PageCachePrefetcher prefetcher;
  bool is_first = false;
  prefetcher.start({memory.path()}, touches(fixture::every(2, 0, 4096)), kNoBudget, longer.done());
  turn.wait();
  prefetcher.start({disk.path()}, touches({5}), kNoBudget,
                   [&, done = shorter.done()](const PageCacheReport& report) {
                     is_first = !longer.has_come();
                     done(report);
                   });
  turn.release();
  CHECK_EQ(shorter.wait().fetched_pages, 1);
  CHECK_EQ(longer.wait().fetched_pages, 2048);
  CHECK(is_first);
  CHECK(memory.cached() == fixture::every(2, 0, 4096));
}

TEST(page_cache_prefetcher_continues_without_a_disk_image_that_cannot_be_opened) {
  const PageFile memory(64);
  const PageFile disk(64);
  if (!memory.evict() || !disk.evict()) SKIP(fixture::kNeedsEviction);
  const uint64_t descriptors = fixture::descriptors_here();
  PageCachePlan plan = touches({5});
  plan.disk_extents = {{0, 1, 2, 0}, {1, 9, 1, 0}};
  const PageCacheReport report =
      bring_in({memory.path(), memory.path() + "-missing", disk.path()}, std::move(plan));
  CHECK(report.failure.code == reap::ErrorCode::source_read);
  CHECK_EQ(report.failure.err, -ENOENT);
  CHECK_EQ(report.failure.syscall, "open");
  CHECK_EQ(report.file, 1);
  CHECK_EQ(report.pages, 2);
  CHECK(memory.cached() == std::vector<uint32_t>({5}));
  CHECK(disk.cached() == std::vector<uint32_t>({9}));
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(page_cache_prefetcher_ends_if_the_memory_file_cannot_be_opened) {
  const PageFile disk(64);
  if (!disk.evict()) SKIP(fixture::kNeedsEviction);
  PageCachePlan plan = touches({5});
  plan.disk_extents = {{0, 1, 2, 0}};
  const PageCacheReport report = bring_in({disk.path() + "-missing", disk.path()}, std::move(plan));
  CHECK_EQ(report.failure.err, -ENOENT);
  CHECK_EQ(report.file, 0);
  CHECK_EQ(report.pages, 0);
  CHECK(disk.cached().empty());
}

TEST(page_cache_prefetcher_has_reported_the_end_of_a_job_when_end_returns) {
  const PageFile memory(64);
  HeldTurn turn(1);
  End end;
  PageCachePrefetcher prefetcher;
  const uint64_t job = prefetcher.start({memory.path()}, touches({5}), kNoBudget, end.done());
  turn.wait();
  bool has_come = false;
  std::thread ending([&] {
    prefetcher.end(job);
    has_come = end.has_come();
  });
  turn.release();
  ending.join();
  CHECK(has_come);
  prefetcher.end(job);  // nothing to wait for
}

TEST(page_cache_prefetcher_waits_for_pages_that_others_are_reading) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  memory.read({5, 6});
  fixture::Hooks hooks;
  // Counted as cached, but still being read: each page is waited for.
  std::atomic<int> looks{0};
  reap::hooks::reads_are_unfinished = [&looks] { return ++looks > 0; };
  const PageCacheReport report = bring_in({memory.path()}, touches({5, 6}));
  CHECK_EQ(report.resident, 2);
  CHECK_EQ(report.fetched_pages, 0);
  CHECK_EQ(looks.load(), 1);
}

TEST(page_cache_prefetcher_skips_a_file_without_a_path) {
  const PageFile disk(64);
  if (!disk.evict()) SKIP(fixture::kNeedsEviction);
  PageCachePlan plan = touches({5, 6});
  plan.disk_extents = {{0, 1, 2, 0}, {1, 9, 1, 0}};
  const PageCacheReport report = bring_in({"", "", disk.path()}, std::move(plan));
  CHECK(!report.failure);
  CHECK_EQ(report.pages, 1);
  CHECK(disk.cached() == std::vector<uint32_t>({9}));
}

TEST(page_cache_prefetcher_ends_a_job_without_files_or_pages) {
  const PageFile empty(0);
  CHECK(!bring_in({}, touches(fixture::every(2, 0, 2 * kExtentsInTurn + 2))).failure);
  CHECK(!bring_in({}, {}).failure);
  const PageCacheReport report = bring_in({empty.path()}, touches({0, 5}));
  CHECK(!report.failure);
  CHECK_EQ(report.pages, 0);
}

TEST(page_cache_prefetcher_brings_in_what_remains_of_a_truncated_file) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(2);
  End end;
  PageCachePrefetcher prefetcher;
  PageCachePlan plan = touches(fixture::every(1, 0, 64));
  // More than one turn, so that there is a second one, which waits.
  for (uint32_t i = 0; i < kExtentsInTurn; ++i) plan.disk_extents.push_back({0, 0, 1, 0});
  prefetcher.start({memory.path(), ""}, std::move(plan), kNoBudget, end.done());
  turn.wait();
  CHECK_EQ(::truncate(memory.path().c_str(), 4096), 0);
  turn.release();
  CHECK(!end.wait().failure);
}

TEST(page_cache_prefetcher_has_closed_its_files_when_it_ends) {
  const PageFile memory(64);
  const uint64_t descriptors = fixture::descriptors_here();
  uint64_t at_the_end = 0;
  End end;
  PageCachePrefetcher prefetcher;
  prefetcher.start({memory.path()}, touches({5}), kNoBudget,
                   [&, done = end.done()](const PageCacheReport& report) {
                     at_the_end = fixture::descriptors_here();
                     done(report);
                   });
  end.wait();
  CHECK_EQ(at_the_end, descriptors);
}

// The captures of a `done` may be anything, even something that ends another job.
TEST(page_cache_prefetcher_can_be_called_while_it_releases_a_job) {
  const PageFile memory(64);
  fixture::Flag is_gone;
  PageCachePrefetcher prefetcher;
  std::shared_ptr<void> captured(nullptr, [&](void*) {
    prefetcher.cancel(1);
    is_gone.set();
  });
  prefetcher.start({memory.path()}, touches({5}), kNoBudget,
                   [captured = std::move(captured)](const PageCacheReport&) {});
  CHECK(fixture::in_time([&] { return is_gone.is_set(); }));
}

TEST(page_cache_prefetcher_ends_each_job_once_when_it_is_destroyed) {
  const PageFile memory(64);
  if (!memory.evict()) SKIP(fixture::kNeedsEviction);
  HeldTurn turn(1);
  End ends[3];
  std::optional<PageCachePrefetcher> prefetcher(std::in_place);
  for (End& end : ends) {
    prefetcher->start({memory.path()}, touches({5}), kNoBudget, end.done());
  }
  turn.wait();
  std::atomic<pid_t> destroyer{0};
  std::thread thread([&] {
    destroyer = fixture::this_thread();
    prefetcher.reset();
  });
  fixture::eventually([&] { return destroyer > 0 && fixture::is_asleep(destroyer); });
  for (const End& end : ends) CHECK(!end.has_come());
  turn.release();
  thread.join();
  for (const End& end : ends) {
    CHECK(end.has_come());
    CHECK(end.wait().cancelled);
  }
  CHECK(memory.cached().empty());
}

TEST(page_cache_prefetcher_without_jobs_can_be_destroyed) { const PageCachePrefetcher prefetcher; }
