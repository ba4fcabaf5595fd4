#include "uffd/install_gate.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace reap {

namespace {

// Waits for a short section of another thread: spins, then yields, then sleeps.
class Backoff {
 public:
  void wait() {
    ++waits_;
    if (waits_ < 200) {
      relax();
    } else if (waits_ < 1000) {
      ::sched_yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }

 private:
  int waits_ = 0;
};

}  // namespace

// Each side announces itself before it checks for the other; with sequential consistency at least
// one of them sees the other.
void InstallGate::lock() {
  Backoff backoff;
  while (writing_.exchange(true)) backoff.wait();
  while (readers_.load() != 0) backoff.wait();
}

void InstallGate::lock_shared() {
  Backoff backoff;
  for (;;) {
    while (writing_.load()) backoff.wait();
    readers_.fetch_add(1);
    if (!writing_.load()) return;
    readers_.fetch_sub(1);
  }
}

}  // namespace reap
