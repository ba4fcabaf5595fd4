// The time that a read on behalf of a fault may take before it counts as hung.
#pragma once

#include <chrono>
#include <cstdint>
#include <list>
#include <mutex>

#include "session/reactor.h"

namespace reap {

class ReadLimit {
  using Clock = std::chrono::steady_clock;
  struct Wait {
    Clock::time_point since;
    bool is_hung = false;
  };

 public:
  // 0: no limit.
  ReadLimit(Reactor& reactor, uint64_t session, std::chrono::milliseconds limit)
      : reactor_(reactor), session_(session), limit_(limit) {}

  // The reads of one thread.
  class Reads {
   public:
    explicit Reads(ReadLimit& limit) : limit_(limit) {}
    ~Reads();
    Reads(const Reads&) = delete;
    Reads& operator=(const Reads&) = delete;
    // The next read begins; the one before is over.
    void begin();

   private:
    ReadLimit& limit_;
    std::list<Wait>::iterator wait_;
    bool has_begun_ = false;
  };

  // To be called at each `read_deadline` of the session. True if a read has hung since the last
  // call.
  bool is_exceeded();

 private:
  Reactor& reactor_;
  const uint64_t session_;
  const std::chrono::milliseconds limit_;
  std::mutex mutex_;  // guards what follows
  std::list<Wait> waits_;
  bool has_timer_ = false;
};

}  // namespace reap
