// The socket to which a VMM connects.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/failure.h"
#include "base/posix.h"

struct stat;

namespace reap {

// A bound socket that unlinks its path when closed.
class Listener {
 public:
  // Maximum number of peers that wait to be accepted.
  static constexpr int kBacklog = 64;

  Listener() = default;
  Listener(Listener&& other) noexcept { *this = std::move(other); }
  Listener& operator=(Listener&& other) noexcept;
  ~Listener() { close(); }

  // Replaces a stale socket. The new one has mode 0600 and, if `peer_uid` is given, that owner.
  Failure open(const std::string& path, std::optional<uid_t> peer_uid);
  // Empty if no peer is waiting, or with *err set.
  UniqueFd accept(int* err);
  bool has_waiting_peer() const;
  void close();
  int fd() const { return fd_.get(); }

 private:
  Failure own(std::optional<uid_t> peer_uid);

  UniqueFd fd_;
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// The process at the other end of a connection, from the kernel.
struct Peer {
  pid_t pid = 0;  // 0: in a pid namespace that is not visible here
  uid_t uid = 0;
  UniqueFd pidfd;  // empty if the kernel cannot provide one

  // Returns 0 or a negative errno.
  int signal(int number) const;
  // False for a process of a foreign pid namespace: its pidfd reports its exit, and takes no signal
  // (access_pidfd_pidns()).
  bool takes_signals() const { return pidfd && signal(0) != -EINVAL; }
};
// Returns 0, or a negative errno if no descriptor is left for the pidfd.
int identify_peer(int connection, Peer* peer);

}  // namespace reap
