// Work of the threads of one restore's prefetch, also while it runs and if it is cut short.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <vector>

namespace reap {

class PrefetchWork {
 public:
  using Clock = std::chrono::steady_clock;
  struct Span {
    Clock::time_point began;
    Clock::time_point ended;
  };
  struct Report {
    Clock::duration fetched{};           // time during which at least one thread fetched
    Clock::duration waited{};            // part of it during which at least one waited for the disk
    uint64_t disk_bytes = 0;             // of the reads that waited for it
    Clock::duration installed{};         // summed over the workers
    std::chrono::nanoseconds on_core{};  // CPU time of it; the rest is waits for cores or locks
  };

  void add_fetch(const Span& span, uint64_t bytes, bool waited);
  void add_install(Clock::duration time, std::chrono::nanoseconds on_core);
  Report report() const;

  // Time covered by at least one of the spans.
  static Clock::duration covered(std::vector<Span> spans);

 private:
  mutable std::mutex mutex_;  // guards what follows
  std::vector<Span> fetches_;
  std::vector<Span> waits_;
  Report report_;
};

}  // namespace reap
