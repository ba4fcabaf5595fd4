// Receives the message and the userfaultfd of Firecracker's UFFD handshake. Never blocks; the
// caller waits for the connection and enforces the deadline.
#pragma once

#include <string>
#include <vector>

#include "base/failure.h"
#include "base/posix.h"
#include "handshake/parser.h"

namespace reap {

// Receives one handshake, in any number of pieces.
class HandshakeReceiver {
 public:
  enum class State { incomplete, complete, refused };
  State receive(int connection, const HandshakeLimits& limits);

  // After `complete`; each may be called once.
  Handshake take_handshake() { return std::move(handshake_); }
  UniqueFd take_uffd() { return std::move(descriptors_.front()); }
  // After `refused`.
  const Failure& failure() const { return failure_; }
  // True if the peer has sent nothing so far.
  bool is_silent() const { return message_.empty() && descriptors_.empty() && !lost_descriptor_; }
  // True if the peer has sent a userfaultfd, so that its guest depends on us. One that the kernel
  // has dropped counts.
  bool guest_depends_on_us() const;

 private:
  State refuse(const char* check, uint64_t offset = 0, uint64_t want = 0, uint64_t got = 0);
  State refuse_truncated_control(int connection);
  State finish(const HandshakeLimits& limits);

  std::string message_;
  std::vector<UniqueFd> descriptors_;
  bool lost_descriptor_ = false;
  MessageScanner scanner_;
  Handshake handshake_;
  Failure failure_;
};

}  // namespace reap
