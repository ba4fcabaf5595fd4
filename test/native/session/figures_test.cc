// The figures of a session against each other. A failure prints its seed; REAP_FIGURE_SEED and
// REAP_FIGURE_ROUNDS repeat it, or run more.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "support/check.h"
#include "support/prefetch_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::Counter;
using fixture::EngineRun;
using fixture::Restore;
using reap::Event;
using reap::FaultClass;
using reap::FaultWaits;
using reap::SessionStep;
using reap::SpanKind;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kPages = 512;

int number(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? static_cast<int>(std::strtol(text, nullptr, 10)) : otherwise;
}

uint64_t nanoseconds(Clock::duration time) { return static_cast<uint64_t>(time.count()); }

Clock::time_point time_of(const reap::Measurements& measured, SessionStep step) {
  return Clock::time_point(std::chrono::nanoseconds(measured.steps.nanoseconds(step)));
}

void check_waits(const reap::Measurements& measured) {
  const FaultWaits::Report report = measured.waits.report();
  uint64_t count = 0;
  uint64_t total = 0;
  uint64_t longest = 0;
  for (const FaultWaits::Distribution& waits : report.classes) {
    uint64_t in_buckets = 0;
    for (const uint64_t faults : waits.buckets) in_buckets += faults;
    CHECK_EQ(in_buckets, waits.count);
    CHECK(waits.max_ns <= waits.total_ns);
    count += waits.count;
    total += waits.total_ns;
    longest = std::max(longest, waits.max_ns);
  }
  const auto of = [&](FaultClass fault) {
    return report.classes[static_cast<size_t>(fault)].count;
  };
  CHECK_EQ(count, measured.counters.get(Counter::faults));
  CHECK_EQ(of(FaultClass::late), measured.counters.get(Counter::late_faults));
  CHECK_EQ(of(FaultClass::residual), measured.counters.get(Counter::residual_faults));
  CHECK(report.stalled_ns >= longest && report.stalled_ns <= total);
  CHECK_EQ(report.stalled_ns, measured.waits.report().stalled_ns);
  CHECK_EQ(report.slowest.size(), std::min<uint64_t>(count, FaultWaits::kSlowest));
  CHECK(report.slowest.empty() || report.slowest[0].wait_ns == longest);
}

void check_steps(const reap::Measurements& measured) {
  for (size_t i = 0; i < std::size(reap::kSessionSteps); ++i) {
    const auto step = static_cast<SessionStep>(i);
    if (!measured.steps.is_reached(step)) continue;
    CHECK(time_of(measured, step) >= time_of(measured, SessionStep::listening));
    CHECK(time_of(measured, step) <= time_of(measured, SessionStep::closed));
  }
}

void check_timeline(const reap::Measurements& measured) {
  uint64_t faults = 0;
  uint64_t installed = 0;
  uint64_t removed = 0;
  Clock::duration install_time{};
  reap::PrefetchWork::Coverage waits;
  Clock::time_point last{};
  uint64_t missing = 0;
  for (const auto& span : measured.timeline.spans(&missing)) {
    CHECK(span.from >= time_of(measured, SessionStep::listening));
    CHECK(span.from <= span.to);
    if (span.kind == SpanKind::fault) {
      CHECK(span.to >= last);
      last = span.to;
      waits.add({span.from, span.to});
      ++faults;
    } else if (span.kind == SpanKind::install) {
      install_time += span.to - span.from;
      installed += span.bytes;
    } else if (span.kind == SpanKind::removal) {
      removed += span.bytes;
    }
  }
  CHECK_EQ(missing, 0U);
  CHECK(last <= time_of(measured, SessionStep::closed));
  CHECK_EQ(faults, measured.counters.get(Counter::faults));
  CHECK_EQ(removed, measured.counters.get(Counter::removed) * fixture::kSmallPage);
  CHECK(installed >= measured.counters.get(Counter::prefetched) * fixture::kSmallPage);
  CHECK_EQ(nanoseconds(waits.total()), measured.waits.report().stalled_ns);

  const reap::PrefetchWork::Report work = measured.prefetch.report();
  CHECK_EQ(work.installed.count(), install_time.count());
  CHECK(work.on_core <= work.installed);
  CHECK(work.waited <= work.fetched);
}

std::vector<fixture::Group> random_groups(std::mt19937& random) {
  std::vector<fixture::Group> groups;
  for (uint32_t page = 0; page < kPages;) {
    const uint32_t length = std::min<uint32_t>(1 + random() % 16, kPages - page);
    if (random() % 2 == 0) groups.push_back({{page, length, random() % 8 == 0}});
    page += length;
  }
  std::shuffle(groups.begin(), groups.end(), random);
  return groups;
}

// Four threads touch pages, one of which also gives some back, while another one looks at the
// figures. Ends by a detach in the midst of it, a detach, or close().
void run_session(uint32_t seed) {
  std::mt19937 random(seed);
  fixture::Shape shape;
  shape.region_pages = {kPages};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::SessionOptions options = options_of(restore);
  const fixture::Set set = write_working_set(restore, random_groups(random));
  if (random() % 4 != 0) {
    options.plan = std::make_shared<const reap::Plan>(set);
    if (random() % 2 == 0) options.proven = set.proven;
  }
  if (random() % 2 == 0) fixture::forget_cached(restore.path);
  EngineRun run;
  const EngineRun::Opened session = run.open(options);
  session.measured->timeline.enable();
  const reap::UniqueFd connection = connect_guest(restore);
  run.wait(Event::Kind::connected, session.id);

  std::vector<std::thread> vcpus;
  for (uint32_t vcpu = 0; vcpu < 4; ++vcpu) {
    vcpus.emplace_back([&restore, seed, vcpu] {
      std::mt19937 own(seed + vcpu);
      for (int touch = 0; touch < 200; ++touch) {
        if (vcpu == 0 && touch % 10 == 0) restore.guest.remove(own() % (kPages - 8), 1 + own() % 8);
        fixture::peek(restore.guest.page(own() % kPages));
      }
    });
  }
  fixture::Flag over;
  std::thread observer([&] {
    while (!over.is_set()) {
      uint64_t missing = 0;
      session.measured->timeline.spans(&missing);
      session.measured->prefetch.report();
      uint64_t answered = 0;
      for (const auto& waits : session.measured->waits.report().classes) answered += waits.count;
      CHECK(answered <= session.get(Counter::faults));
      std::this_thread::yield();
    }
  });
  const uint32_t end = random() % 3;
  if (end == 0) run.find(session.id)->detach();
  for (std::thread& vcpu : vcpus) vcpu.join();
  if (end == 1) run.find(session.id)->detach();
  if (end == 2) run.close(session.id, false);
  run.wait_for_end(session.id);
  over.set();
  observer.join();
  check_waits(*session.measured);
  check_steps(*session.measured);
  check_timeline(*session.measured);
}

}  // namespace

TEST(the_figures_of_a_session_agree_with_each_other) {
  const int first = number("REAP_FIGURE_SEED", 1);
  for (int seed = first; seed < first + number("REAP_FIGURE_ROUNDS", 10); ++seed) {
    const int before = check::failures;
    run_session(static_cast<uint32_t>(seed));
    if (check::failures != before) std::fprintf(stderr, "seed %d\n", seed);
  }
}
