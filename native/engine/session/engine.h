// All sessions of one JavaScript environment, and the threads that serve and prefetch for them.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>

#include "base/thread_group.h"
#include "prefetch/prefetcher.h"
#include "session/reactor.h"
#include "session/session.h"

namespace reap {

class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // `emit` is called on any thread, but not after shutdown() has returned.
  using Emit = std::function<void(Event&&)>;

  // Null with *failure set if there is no thread, or epoll, timerfd or eventfd fails. shutdown()
  // must be called.
  static std::shared_ptr<Engine> create(Emit emit, Failure* failure);

  // Returns the id of a listening session, or 0 with *failure set.
  uint64_t open(SessionOptions options, std::shared_ptr<Measurements> measurements,
                Failure* failure);
  std::shared_ptr<Session> find(uint64_t id);
  Reactor& reactor() { return *reactor_; }
  const ThreadGroup& threads() const { return threads_; }
  // Ends every session as its options specify and waits for the threads. One that waits for storage
  // that hangs is left behind, with all that it uses.
  void shutdown();

 private:
  Engine(Emit emit, std::unique_ptr<Reactor> reactor);
  int start();
  void dispatch(uint64_t id, Reactor::Role role, ServeBuffers& buffers);
  void emit(Event&& event);
  void release(uint64_t id);
  void forget(uint64_t id);
  void report_end(uint64_t id);

  const ThreadGroup threads_;
  const std::unique_ptr<Reactor> reactor_;
  Prefetcher prefetcher_;
  const Session::Environment environment_;

  std::mutex emit_mutex_;  // guards what follows
  Emit emit_;              // empty after shutdown()

  std::mutex mutex_;  // guards what follows
  std::unordered_map<uint64_t, std::shared_ptr<Session>> sessions_;
  // Sessions that were released while a thread used them.
  std::unordered_map<uint64_t, std::weak_ptr<Session>> released_;
  uint64_t next_id_ = 1;
  bool shut_down_ = false;
};

}  // namespace reap
