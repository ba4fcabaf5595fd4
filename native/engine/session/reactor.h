// Threads that wait on epoll for the descriptors and timers of every session.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/posix.h"
#include "uffd/fault_handler.h"

namespace reap {

class Reactor {
 public:
  // What an event or a timer of a session is about.
  enum class Role : uint8_t {
    listener,
    vmm,
    connection,
    uffd,
    process,
    connect_deadline,
    message_deadline,
    serve_again,
    look_after_workers,
    serve_held,
    kill_deadline
  };
  using Dispatch = std::function<void(uint64_t session, Role role, ServeBuffers& buffers)>;

  // Null with *err set when the kernel gives no epoll, timer or eventfd.
  static std::unique_ptr<Reactor> create(int* err);
  ~Reactor() { stop(); }

  // Starts the threads. `busy_workers` says how many cores the prefetch keeps busy.
  void start(Dispatch dispatch, std::function<unsigned()> busy_workers);
  // Joins them.
  void stop();

  // Each event is one thread's, until rearm(): other events of the session go on, and so do other
  // sessions.
  bool watch(uint64_t session, Role role, int fd, uint32_t events);
  void rearm(uint64_t session, Role role, int fd, uint32_t events);
  void unwatch(int fd);
  void after(std::chrono::nanoseconds delay, uint64_t session, Role role);

  // Whether one more thread may wait for the disk: one is always left for faults whose pages are in
  // memory, for timers and for the ends of VMs.
  bool begin_blocking();
  void end_blocking() { blocking_.fetch_sub(1, std::memory_order_relaxed); }

  unsigned cores() const { return cores_; }
  // Whether a thread that wakes now takes no core from a prefetch or from a thread that spins.
  bool has_core_to_spare() const;

  // Permission for one thread to look for the next fault instead of sleeping.
  class Spin {
   public:
    explicit Spin(Reactor& reactor);
    ~Spin();
    std::chrono::nanoseconds duration() const { return duration_; }
    // A thread lost its core while it spun. The host has other work: nobody spins for kSpinPause.
    void lost_core();

   private:
    Reactor& reactor_;
    std::chrono::nanoseconds duration_{0};
  };

 private:
  using Clock = std::chrono::steady_clock;
  struct Timer {
    uint64_t session;
    Role role;
  };

  Reactor();
  void work(unsigned index);
  void on_timer(ServeBuffers& buffers);
  void arm_timer();

  // Not asked for each fault: it reads files. Quotas and affinity are set before a process starts.
  const unsigned cores_;
  UniqueFd epoll_;
  UniqueFd timer_;
  UniqueFd stop_;
  Dispatch dispatch_;
  std::function<unsigned()> busy_workers_;
  std::vector<std::thread> threads_;
  std::atomic<unsigned> spinning_{0};
  std::atomic<unsigned> blocking_{0};
  std::atomic<Clock::time_point> no_spin_until_{Clock::time_point{}};

  std::mutex mutex_;  // guards what follows
  std::multimap<Clock::time_point, Timer> timers_;
};

}  // namespace reap
