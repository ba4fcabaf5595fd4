// The threads behind every session of one JavaScript environment: a few that wait on epoll and
// serve, a few that prefetch.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/posix.h"
#include "prefetch/prefetcher.h"
#include "session/session.h"

namespace reap {

class Engine {
 public:
  // `emit` is called on any thread, and not after shutdown() has returned.
  using Emit = std::function<void(Event&&)>;

  // Null with *err set when the kernel gives no epoll, timer or eventfd.
  static std::unique_ptr<Engine> create(Emit emit, int* err);
  ~Engine() { shutdown(); }

  // The id of a session that listens, or 0 with *failure set.
  uint64_t open(SessionOptions options, std::shared_ptr<Counters> counters,
                std::shared_ptr<TraceRecorder> trace, Failure* failure);
  std::shared_ptr<Session> find(uint64_t id);
  // Ends every session as its options say and joins the threads.
  void shutdown();

  // For sessions.
  bool watch(uint64_t id, Session::Role role, int fd, uint32_t events);
  void rearm(uint64_t id, Session::Role role, int fd, uint32_t events);
  void unwatch(int fd);
  void after(std::chrono::nanoseconds delay, uint64_t id, Session::Role role);
  void release(uint64_t id);
  void emit(Event&& event) { emit_(std::move(event)); }
  Prefetcher& prefetcher() { return *prefetcher_; }
  // Whether one more demand thread may wait for the disk: one is always left for faults whose pages
  // are in memory, for timers and for the ends of VMs.
  bool begin_blocking();
  // Whether a thread that wakes now takes no core from a prefetch or from a thread that spins.
  bool has_core_to_spare() const;
  void end_blocking() { blocking_.fetch_sub(1, std::memory_order_relaxed); }

  // Permission for one thread to look for the next fault instead of sleeping.
  class Spin {
   public:
    explicit Spin(Engine& engine);
    ~Spin();
    std::chrono::nanoseconds duration() const { return duration_; }
    // A thread lost its core while it spun. The host has other work: nobody spins for kSpinPause.
    void lost_core();

   private:
    Engine& engine_;
    std::chrono::nanoseconds duration_{0};
  };

 private:
  using Clock = std::chrono::steady_clock;
  struct Token {
    uint64_t id;
    Session::Role role;
  };

  explicit Engine(Emit emit) : emit_(std::move(emit)) {}
  void work(unsigned index);
  void on_timer(ServeBuffers& buffers);
  void dispatch(Token token, ServeBuffers& buffers);
  void arm_timer();

  const Emit emit_;
  UniqueFd epoll_;
  UniqueFd timer_;
  UniqueFd stop_;
  std::unique_ptr<Prefetcher> prefetcher_;
  std::vector<std::thread> threads_;
  std::atomic<unsigned> spinning_{0};
  std::atomic<unsigned> blocking_{0};
  std::atomic<Clock::time_point> no_spin_until_{Clock::time_point{}};

  std::mutex mutex_;  // guards what follows
  std::unordered_map<uint64_t, std::shared_ptr<Session>> sessions_;
  std::multimap<Clock::time_point, Token> timers_;
  uint64_t next_id_ = 1;
  bool shut_down_ = false;
};

}  // namespace reap
