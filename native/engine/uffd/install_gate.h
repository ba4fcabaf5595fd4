// Keeps installs and the reading of userfaultfd messages apart (fault_handler.cc has the race).
#pragma once

#include <atomic>

namespace reap {

// Tells the core that this thread only waits.
inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A reader-writer lock for sections of a few microseconds, in which a waiting writer goes first, so
// that a busy prefetch cannot keep the demand thread out. Waiting spins: to put the workers to
// sleep and wake them again for each fault would cost more than the fault.
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
