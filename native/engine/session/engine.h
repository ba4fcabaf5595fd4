// All sessions of one JavaScript environment, and the threads that serve and prefetch for them.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>

#include "prefetch/prefetcher.h"
#include "session/reactor.h"
#include "session/session.h"

namespace reap {

class Engine {
 public:
  // `emit` is called on any thread, but not after shutdown() has returned.
  using Emit = std::function<void(Event&&)>;

  // Null with *failure set if there is no thread, or epoll, timerfd or eventfd fails.
  static std::unique_ptr<Engine> create(Emit emit, Failure* failure);
  ~Engine() { shutdown(); }

  // Returns the id of a listening session, or 0 with *failure set.
  uint64_t open(SessionOptions options, std::shared_ptr<Counters> counters,
                std::shared_ptr<TraceRecorder> trace, Failure* failure);
  std::shared_ptr<Session> find(uint64_t id);
  Reactor& reactor() { return *reactor_; }
  // Ends every session as its options specify and joins the threads.
  void shutdown();

 private:
  Engine(Emit emit, std::unique_ptr<Reactor> reactor);
  int start();
  void release(uint64_t id);

  const std::unique_ptr<Reactor> reactor_;
  std::unique_ptr<Prefetcher> prefetcher_;
  const Session::Environment environment_;

  std::mutex mutex_;  // guards what follows
  std::unordered_map<uint64_t, std::shared_ptr<Session>> sessions_;
  uint64_t next_id_ = 1;
  bool shut_down_ = false;
};

}  // namespace reap
