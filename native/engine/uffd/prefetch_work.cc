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

void PrefetchWork::add_install(Clock::duration time, uint64_t bytes,
                               std::optional<std::chrono::nanoseconds> on_core) {
  const std::lock_guard<std::mutex> lock(mutex_);
  report_.installed += time;
  installed_bytes_ += bytes;
  if (!on_core) return;
  sampled_bytes_ += bytes;
  sampled_ += *on_core;
}

PrefetchWork::Report PrefetchWork::report() const {
  std::unique_lock<std::mutex> lock(mutex_);
  Report report = report_;
  std::vector<Span> fetches = fetches_;
  std::vector<Span> waits = waits_;
  if (sampled_bytes_ > 0) {
    const double share =
        static_cast<double>(installed_bytes_) / static_cast<double>(sampled_bytes_);
    const auto on_core = std::chrono::duration<double, std::nano>(sampled_) * share;
    report.on_core =
        std::min(report.installed, std::chrono::duration_cast<std::chrono::nanoseconds>(on_core));
  }
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
