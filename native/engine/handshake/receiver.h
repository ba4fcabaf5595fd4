// Socket side of Firecracker's UFFD handshake: listens, accepts one VMM, receives its message and
// its userfaultfd. Never blocks; the caller waits on fd() and enforces the deadline.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/failure.h"
#include "base/posix.h"
#include "handshake/parser.h"

namespace reap {

// A bound socket that unlinks its path when closed.
class Listener {
 public:
  Listener() = default;
  Listener(Listener&& other) noexcept { *this = std::move(other); }
  Listener& operator=(Listener&& other) noexcept;
  ~Listener() { close(); }

  // Replaces a stale socket. The new one has mode 0600 and, if `peer_uid` is given, that owner.
  Failure open(const std::string& path, std::optional<uid_t> peer_uid);
  // Empty if no peer is waiting, or with *err set.
  UniqueFd accept(int* err);
  void close();
  int fd() const { return fd_.get(); }

 private:
  UniqueFd fd_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// The process at the other end of a connection, from the kernel.
struct Peer {
  pid_t pid = 0;
  uid_t uid = 0;
  UniqueFd pidfd;  // empty if the kernel cannot provide one (another pid namespace, before 5.3)
};
Peer identify_peer(int connection);

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
  // True if the peer has sent a userfaultfd, so that its guest depends on us.
  bool got_uffd() const;

 private:
  State refuse(const char* check, uint64_t offset = 0, uint64_t want = 0, uint64_t got = 0);
  State finish(const HandshakeLimits& limits);

  std::string message_;
  std::vector<UniqueFd> descriptors_;
  MessageScanner scanner_;
  Handshake handshake_;
  Failure failure_;
};

}  // namespace reap
