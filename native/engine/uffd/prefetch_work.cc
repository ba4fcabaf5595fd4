#include "uffd/prefetch_work.h"

#include <algorithm>
#include <utility>

namespace reap {

void PrefetchWork::add_fetch(const Span& span, uint64_t bytes, bool waited) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fetches_.push_back(span);
  if (!waited) return;
  waits_.push_back(span);
  report_.disk_bytes += bytes;
}

void PrefetchWork::add_install(Clock::duration time, std::chrono::nanoseconds on_core) {
  const std::lock_guard<std::mutex> lock(mutex_);
  report_.installed += time;
  report_.on_core += on_core;
}

PrefetchWork::Report PrefetchWork::report() const {
  std::unique_lock<std::mutex> lock(mutex_);
  Report report = report_;
  std::vector<Span> fetches = fetches_;
  std::vector<Span> waits = waits_;
  lock.unlock();
  report.fetched = covered(std::move(fetches));
  report.waited = covered(std::move(waits));
  return report;
}

PrefetchWork::Clock::duration PrefetchWork::covered(std::vector<Span> spans) {
  std::sort(spans.begin(), spans.end(),
            [](const Span& one, const Span& other) { return one.began < other.began; });
  Clock::duration all{};
  Clock::time_point until{};
  for (const Span& span : spans) {
    if (span.ended <= until) continue;
    all += span.ended - std::max(span.began, until);
    until = span.ended;
  }
  return all;
}

}  // namespace reap
