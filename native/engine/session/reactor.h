// Threads that wait in epoll for the descriptors and timers of all sessions.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "base/posix.h"
#include "base/thread_group.h"
#include "session/spin_pause.h"
#include "uffd/fault_handler.h"

namespace reap {

class Reactor {
 public:
  // Purpose of a session's event or timer.
  enum class Role : uint8_t {
    listener,
    accept_again,
    vmm,
    connection,
    uffd,
    process,
    connect_deadline,
    message_deadline,
    serve_again,
    poll_fallback,
    serve_held,
    disk_is_free,
    kill_deadline,
    end_deadline,
    read_deadline,
    prefetch_watch
  };
  using Dispatch = std::function<void(uint64_t session, Role role, ServeBuffers& buffers)>;

  // Null with *err set if epoll, timerfd or eventfd fails.
  static std::unique_ptr<Reactor> create(int* err);

  // Starts the threads. `busy_workers` returns the number of cores that the prefetch keeps busy.
  // Returns 0 or a negative errno (base/thread.h).
  int start(const ThreadGroup& threads, Dispatch dispatch, std::function<unsigned()> busy_workers);
  // Lets the threads end.
  void stop();

  // An event is handled by one thread until rearm(). Other events of the session, and other
  // sessions, are not affected.
  bool watch(uint64_t session, Role role, int fd, uint32_t events);
  void rearm(uint64_t session, Role role, int fd, uint32_t events);
  void unwatch(int fd);
  void after(std::chrono::nanoseconds delay, uint64_t session, Role role);
  // Drops the timers of a session that has ended.
  void forget(uint64_t session);
  size_t timer_count();

  // True if another thread may wait for this device: one always remains for faults on cached pages,
  // for timers and for exits of VMs, and is started if need be. Every session may have one such
  // thread where there is room, and a further one only while few others wait for the device. After
  // a refusal the session gets `disk_is_free` when a thread has waited to the end.
  bool begin_blocking(uint64_t session, uint64_t device, bool is_first);
  void end_blocking(uint64_t device);

  unsigned cores() const { return cores_; }
  // True if a thread that wakes now takes no core from a prefetch or from a spinning thread.
  bool has_spare_core() const;

  // Permission for one thread to poll for the next fault instead of sleeping.
  class Spin {
   public:
    explicit Spin(Reactor& reactor);
    ~Spin();
    std::chrono::nanoseconds duration() const { return duration_; }
    void end(bool lost_core);

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
  int start_thread();
  bool may_end();
  void work(unsigned index);
  void on_timer(ServeBuffers& buffers);
  void arm_timer();

  // Determined once, since it reads files. Quotas and affinity are set before a process starts.
  const unsigned cores_;
  UniqueFd epoll_;
  UniqueFd timer_;
  UniqueFd stop_;
  Dispatch dispatch_;
  std::function<unsigned()> busy_workers_;
  ThreadGroup threads_;
  std::atomic<unsigned> spinning_{0};
  SpinPause spin_pause_;

  std::mutex mutex_;  // guards what follows
  std::multimap<Clock::time_point, Timer> timers_;

  // Threads that wait for a device, and the sessions that were refused one.
  struct Device {
    unsigned blocking = 0;
    std::set<uint64_t> refused;
  };
  std::mutex blocking_mutex_;  // guards what follows
  std::map<uint64_t, Device> devices_;
  std::atomic<unsigned> running_{0};  // threads; changed under the mutex
  unsigned blocking_ = 0;             // of these, those that wait for a disk
};

}  // namespace reap
