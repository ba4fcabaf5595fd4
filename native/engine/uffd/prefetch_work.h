// Work of the threads of one restore's prefetch, also while it runs and if it is cut short.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

namespace reap {

class PrefetchWork {
 public:
  using Clock = std::chrono::steady_clock;
  struct Span {
    Clock::time_point began;
    Clock::time_point ended;
  };
  // Time covered by at least one of the spans that were added, in any order.
  class Coverage {
   public:
    void add(Span span);
    Clock::duration total() const { return total_; }

   private:
    std::vector<Span> apart_;  // ascending, without a common moment
    Clock::duration total_{};
  };
  struct Report {
    Clock::duration fetched{};           // time during which at least one thread fetched
    Clock::duration waited{};            // part of it during which at least one waited for the disk
    uint64_t disk_bytes = 0;             // of the reads that waited for it
    Clock::duration installed{};         // summed over the workers
    std::chrono::nanoseconds on_core{};  // CPU time of it, from samples; the rest is waits
  };

  void add_fetch(const Span& span, uint64_t bytes, bool waited);
  // Whether to take the CPU time of the next install: a system call that is 3 % of a restore if it
  // is made for each of them.
  bool samples_install() { return installs_.fetch_add(1, std::memory_order_relaxed) % 8 == 0; }
  // `on_core`: the CPU time, of a sample.
  void add_install(Clock::duration time, uint64_t bytes,
                   std::optional<std::chrono::nanoseconds> on_core);
  Report report() const;

 private:
  std::atomic<uint64_t> installs_{0};
  mutable std::mutex mutex_;  // guards what follows
  Coverage fetches_;
  Coverage waits_;
  Report report_;
  uint64_t installed_bytes_ = 0;
  uint64_t sampled_bytes_ = 0;
  std::chrono::nanoseconds sampled_{};
};

}  // namespace reap
