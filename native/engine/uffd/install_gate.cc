#include "uffd/install_gate.h"

#include <sched.h>

#include <chrono>
#include <thread>

namespace reap {

namespace {

// Waits for somebody who is about to be done: spins, then lets others run, then sleeps.
class Patience {
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

// Both sides announce themselves first and look for the other then; with sequential consistency at
// least one of them sees the other.
void InstallGate::lock() {
  Patience patience;
  while (writing_.exchange(true)) patience.wait();
  while (readers_.load() != 0) patience.wait();
}

void InstallGate::lock_shared() {
  Patience patience;
  for (;;) {
    while (writing_.load()) patience.wait();
    readers_.fetch_add(1);
    if (!writing_.load()) return;
    readers_.fetch_sub(1);
  }
}

}  // namespace reap
