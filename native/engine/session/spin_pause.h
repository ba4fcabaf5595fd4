// When threads may poll for faults instead of sleeping. A core that a polling thread loses has
// other work: the thread waits for a whole slice then, and so does the fault that comes meanwhile.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

namespace reap {

class SpinPause {
 public:
  using Clock = std::chrono::steady_clock;
  // About what a loss costs.
  static constexpr auto kMin = std::chrono::milliseconds(5);
  static constexpr auto kMax = kMin * 128;

  bool is_over(Clock::time_point now) const {
    return now >= until_.load(std::memory_order_relaxed);
  }
  // A thread that polled lost its core. The pause doubles with each loss: other work may keep the
  // cores busy for long.
  void lost_core(Clock::time_point now) {
    const Clock::duration pause = next_.load(std::memory_order_relaxed);
    until_.store(now + pause, std::memory_order_relaxed);
    next_.store(std::min<Clock::duration>(2 * pause, kMax), std::memory_order_relaxed);
  }
  // One polled and did not lose it.
  void kept_core() {
    const Clock::duration pause = next_.load(std::memory_order_relaxed);
    if (pause > kMin) {
      next_.store(std::max<Clock::duration>(pause / 2, kMin), std::memory_order_relaxed);
    }
  }

 private:
  std::atomic<Clock::time_point> until_{Clock::time_point{}};
  std::atomic<Clock::duration> next_{kMin};
};

}  // namespace reap
