#include "uffd/prefetch_work.h"

#include <algorithm>

namespace reap {

void PrefetchWork::add_fetch(const Span& span, uint64_t bytes, bool waited) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fetches_.add(span);
  if (!waited) return;
  waits_.add(span);
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
  const std::lock_guard<std::mutex> lock(mutex_);
  Report report = report_;
  report.fetched = fetches_.total();
  report.waited = waits_.total();
  if (sampled_bytes_ > 0) {
    const double share =
        static_cast<double>(installed_bytes_) / static_cast<double>(sampled_bytes_);
    const auto on_core = std::chrono::duration<double, std::nano>(sampled_) * share;
    report.on_core =
        std::min(report.installed, std::chrono::duration_cast<std::chrono::nanoseconds>(on_core));
  }
  return report;
}

void PrefetchWork::Coverage::add(Span span) {
  const auto first = std::lower_bound(
      apart_.begin(), apart_.end(), span.began,
      [](const Span& other, Clock::time_point began) { return other.ended < began; });
  auto last = first;
  for (; last != apart_.end() && last->began <= span.ended; ++last) {
    span.began = std::min(span.began, last->began);
    span.ended = std::max(span.ended, last->ended);
    total_ -= last->ended - last->began;
  }
  total_ += span.ended - span.began;
  apart_.insert(apart_.erase(first, last), span);
}

}  // namespace reap
