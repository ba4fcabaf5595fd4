#include "uffd/timing.h"

#include "support/check.h"
#include "support/guest_fixture.h"
#include "uffd/prefetch_work.h"

using reap::FaultClass;
using reap::FaultWaits;
using reap::PrefetchWork;
using reap::SpanKind;
using reap::Timeline;

namespace {

using fixture::Restore;

constexpr uint64_t kPage = 4096;

const FaultWaits::Distribution& of(const FaultWaits::Report& report, FaultClass fault) {
  return report.classes[static_cast<size_t>(fault)];
}

}  // namespace

TEST(buckets_of_waits_are_powers_of_two_with_linear_halves) {
  CHECK_EQ(FaultWaits::limit_ns(0), 1024U);
  CHECK_EQ(FaultWaits::limit_ns(1), 1536U);
  CHECK_EQ(FaultWaits::limit_ns(2), 2048U);
  CHECK_EQ(FaultWaits::limit_ns(3), 3072U);
  for (size_t bucket = 0; bucket + 1 < FaultWaits::kBuckets; ++bucket) {
    const uint64_t limit = FaultWaits::limit_ns(bucket);
    CHECK_EQ(FaultWaits::bucket_of(limit - 1), bucket);
    CHECK_EQ(FaultWaits::bucket_of(limit), bucket + 1);
  }
  CHECK_EQ(FaultWaits::bucket_of(UINT64_MAX), FaultWaits::kBuckets - 1);
  CHECK_EQ(FaultWaits::limit_ns(FaultWaits::kBuckets - 1), uint64_t{1} << 36);
}

TEST(the_stalled_time_counts_overlapping_waits_once) {
  Timeline timeline;
  FaultWaits waits(timeline);
  const auto start = FaultWaits::Clock::now();
  waits.begin(0, FaultClass::on_demand, start - std::chrono::seconds(3));
  waits.begin(kPage, FaultClass::on_demand, start - std::chrono::seconds(2));
  waits.end(0, kPage);
  waits.end(kPage, kPage);
  const FaultWaits::Report report = waits.report();
  const auto& faults = of(report, FaultClass::on_demand);
  CHECK_EQ(faults.count, 2U);
  CHECK(faults.total_ns >= uint64_t{5} * 1000000000);
  // Both ends are after `start`, so the rest is the duration of this test.
  CHECK(report.stalled_ns >= uint64_t{3} * 1000000000);
  CHECK(report.stalled_ns < faults.total_ns);
  CHECK_EQ(report.slowest.size(), 2U);
  CHECK_EQ(report.slowest[0].offset, 0U);
  CHECK_EQ(report.slowest[1].offset, kPage);
}

TEST(the_stalled_time_goes_on_while_a_fault_is_open_and_ends_with_the_session) {
  Timeline timeline;
  FaultWaits waits(timeline);
  waits.begin(0, FaultClass::late, FaultWaits::Clock::now() - std::chrono::seconds(1));
  const uint64_t so_far = waits.report().stalled_ns;
  CHECK(so_far >= uint64_t{1000000000});
  CHECK(so_far < waits.report().stalled_ns);
  waits.close();
  const uint64_t stalled = waits.report().stalled_ns;
  CHECK(stalled >= uint64_t{1000000000});
  CHECK_EQ(waits.report().stalled_ns, stalled);
  CHECK_EQ(of(waits.report(), FaultClass::late).count, 1U);
  CHECK_EQ(waits.report().slowest[0].wait_ns, stalled);
}

TEST(a_fault_that_is_answered_as_the_session_ends_is_counted) {
  Timeline timeline;
  FaultWaits waits(timeline);
  waits.begin(0, FaultClass::residual, FaultWaits::Clock::now() - std::chrono::seconds(1));
  waits.close();
  const uint64_t stalled = waits.report().stalled_ns;
  waits.end(0, kPage);
  CHECK_EQ(of(waits.report(), FaultClass::residual).count, 1U);
  CHECK_EQ(waits.report().stalled_ns, stalled);
}

// A thread may be kept from its core between the time of a fault and its begin.
TEST(stalled_time_is_not_counted_again_for_a_fault_that_begins_late) {
  Timeline timeline;
  FaultWaits waits(timeline);
  const auto first = FaultWaits::Clock::now() - std::chrono::seconds(3);
  waits.begin(0, FaultClass::on_demand, first);
  waits.end(0, kPage);
  waits.begin(kPage, FaultClass::on_demand, first + std::chrono::seconds(1));
  waits.end(kPage, kPage);
  const auto wall = FaultWaits::Clock::now() - first;
  CHECK(std::chrono::nanoseconds(waits.report().stalled_ns) <= wall);
}

TEST(the_stalled_time_begins_with_the_first_fault_in_whatever_order_they_come) {
  Timeline timeline;
  FaultWaits waits(timeline);
  const auto now = FaultWaits::Clock::now();
  waits.begin(0, FaultClass::on_demand, now - std::chrono::seconds(1));
  waits.begin(kPage, FaultClass::on_demand, now - std::chrono::seconds(2));
  waits.end(0, 2 * kPage);
  const FaultWaits::Report report = waits.report();
  CHECK_EQ(report.stalled_ns, of(report, FaultClass::on_demand).max_ns);
}

TEST(a_fault_that_is_read_as_the_session_ends_takes_no_time) {
  Timeline timeline;
  timeline.enable();
  FaultWaits waits(timeline);
  const auto closed = waits.close();
  CHECK(waits.close() == closed);
  waits.begin(0, FaultClass::on_demand, FaultWaits::Clock::now() + std::chrono::seconds(1));
  waits.end(0, kPage);
  uint64_t missing = 0;
  const auto spans = timeline.spans(&missing);
  CHECK_EQ(spans.size(), 1U);
  CHECK(spans[0].from == closed && spans[0].to == closed);
  CHECK_EQ(waits.report().stalled_ns, 0U);
}

TEST(a_step_later_than_the_end_is_not_reached) {
  reap::SessionSteps steps;
  const auto now = reap::SessionSteps::Clock::now();
  steps.reach(reap::SessionStep::prefetched, now + std::chrono::seconds(1));
  CHECK(steps.is_reached(reap::SessionStep::prefetched));
  steps.reach(reap::SessionStep::closed, now);
  CHECK(!steps.is_reached(reap::SessionStep::prefetched));
  steps.reach(reap::SessionStep::ready, now - std::chrono::seconds(1));
  CHECK(steps.is_reached(reap::SessionStep::ready));
}

TEST(a_session_times_its_faults_by_class) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.measured.timeline.enable();
  restore.handler->expect_prefetch();
  restore.handler->expect(kPage, kPage);
  restore.handler->end_prefetch();
  {
    fixture::Servers servers(*restore.handler);
    CHECK(restore.has_file_bytes(3));
  }
  const FaultWaits::Report report = restore.measured.waits.report();
  CHECK_EQ(of(report, FaultClass::residual).count, 1U);
  CHECK_EQ(of(report, FaultClass::on_demand).count, 0U);
  CHECK(report.stalled_ns > 0);
  CHECK_EQ(report.slowest.size(), 1U);
  CHECK_EQ(report.slowest[0].offset, 3 * kPage);
  CHECK(restore.measured.steps.is_reached(reap::SessionStep::first_fault));
  uint64_t missing = 0;
  const auto spans = restore.measured.timeline.spans(&missing);
  CHECK_EQ(missing, 0U);
  CHECK_EQ(spans.size(), 1U);
  CHECK(spans[0].kind == SpanKind::fault && spans[0].from < spans[0].to);
}

TEST(a_fault_that_a_detach_answers_waits_no_longer) {
  fixture::Hooks hooks;
  fixture::Hold hold;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::before_serve = hold.hook();
  std::thread vcpu([&] { CHECK(restore.is_zero(3)); });
  fixture::Servers servers(*restore.handler);
  hold.wait_until_held();
  CHECK_EQ(restore.handler->unregister(), 0);
  vcpu.join();
  const FaultWaits::Report report = restore.measured.waits.report();
  CHECK_EQ(of(report, FaultClass::on_demand).count, 1U);
  CHECK_EQ(restore.measured.waits.report().stalled_ns, report.stalled_ns);
  hold.release();
}

TEST(a_timeline_keeps_the_first_spans_and_counts_the_others) {
  Timeline timeline;
  timeline.add({SpanKind::fetch, {}, {}});
  uint64_t missing = 1;
  CHECK(timeline.spans(&missing).empty());
  CHECK_EQ(missing, 0U);
  timeline.enable();
  for (size_t i = 0; i < Timeline::kMax + 3; ++i) {
    Timeline::Span span{SpanKind::fetch, {}, {}};
    span.bytes = i;
    timeline.add(span);
  }
  const auto spans = timeline.spans(&missing);
  CHECK_EQ(spans.size(), Timeline::kMax);
  CHECK_EQ(spans.back().bytes, Timeline::kMax - 1);
  CHECK_EQ(missing, 3U);
}

TEST(a_fault_that_is_not_answered_is_among_the_slowest) {
  Timeline timeline;
  FaultWaits waits(timeline);
  const auto start = FaultWaits::Clock::now();
  waits.begin(100 * kPage, FaultClass::residual, start - std::chrono::seconds(20));
  for (uint64_t page = 0; page < 2 * FaultWaits::kSlowest; ++page) {
    waits.begin(page * kPage, FaultClass::late, start - std::chrono::seconds(page + 1));
    waits.end(page * kPage, kPage);
  }
  const FaultWaits::Report report = waits.report();
  CHECK_EQ(of(report, FaultClass::residual).count, 0U);
  CHECK_EQ(report.slowest.size(), FaultWaits::kSlowest);
  CHECK_EQ(report.slowest[0].offset, 100 * kPage);
  CHECK_EQ(report.slowest[1].offset, 15 * kPage);
}

TEST(time_in_which_several_threads_fetch_counts_once) {
  using Spans = std::vector<PrefetchWork::Span>;
  const auto span = [](int began, int ended) {
    const PrefetchWork::Clock::time_point zero{std::chrono::seconds(100)};
    return PrefetchWork::Span{zero + std::chrono::microseconds(began),
                              zero + std::chrono::microseconds(ended)};
  };
  const auto covered = [](const Spans& spans) {
    PrefetchWork::Coverage coverage;
    for (const PrefetchWork::Span& one : spans) coverage.add(one);
    return coverage.total() / std::chrono::microseconds(1);
  };
  CHECK_EQ(covered({}), 0);
  CHECK_EQ(covered({span(5, 9)}), 4);
  // Disjoint, adjacent, nested, and in any order.
  CHECK_EQ(covered({span(20, 30), span(0, 10)}), 20);
  CHECK_EQ(covered({span(5, 15), span(0, 10)}), 15);
  CHECK_EQ(covered({span(0, 10), span(2, 4), span(8, 9)}), 10);
  CHECK_EQ(covered({span(10, 12), span(0, 10), span(11, 12)}), 12);
  CHECK_EQ(covered({span(0, 2), span(8, 9), span(4, 5), span(1, 8)}), 9);

  PrefetchWork work;
  work.add_fetch(span(0, 10), 4096, false);
  work.add_fetch(span(5, 25), 8192, true);
  CHECK_EQ(work.report().fetched / std::chrono::microseconds(1), 25);
  CHECK_EQ(work.report().waited / std::chrono::microseconds(1), 20);
  CHECK_EQ(work.report().disk_bytes, 8192U);
}

TEST(the_cpu_time_of_installs_is_that_of_samples_by_their_bytes) {
  using std::chrono::microseconds;
  PrefetchWork work;
  CHECK(work.samples_install());
  for (int other = 1; other < 8; ++other) CHECK(!work.samples_install());
  CHECK(work.samples_install());
  CHECK_EQ(work.report().on_core.count(), 0);
  work.add_install(microseconds(100), 2 * kPage, microseconds(20));
  work.add_install(microseconds(500), 6 * kPage, std::nullopt);
  CHECK_EQ(work.report().installed / microseconds(1), 600);
  CHECK_EQ(work.report().on_core / microseconds(1), 80);
  // Not more than the installs took.
  work.add_install(microseconds(1), 1000 * kPage, std::nullopt);
  CHECK_EQ(work.report().on_core / microseconds(1), 601);
}
