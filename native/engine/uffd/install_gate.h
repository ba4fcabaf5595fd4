// Separates installs from reads of userfaultfd messages (fault_handler.cc describes the race).
#pragma once

#include <atomic>

namespace reap {

// Hints to the core that this thread only waits.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A reader-writer lock for sections of a few microseconds. Waiting writers have priority, so that a
// busy prefetch cannot keep the demand thread out. Waiters spin: to put the workers to sleep and
// wake them for each fault would cost more than the fault.
class InstallGate {
 public:
  void lock();
  void unlock() { writing_.store(false, std::memory_order_seq_cst); }
  void lock_shared();
  void unlock_shared() { readers_.fetch_sub(1, std::memory_order_seq_cst); }

 private:
  std::atomic<bool> writing_{false};
  std::atomic<int> readers_{0};
};

}  // namespace reap
