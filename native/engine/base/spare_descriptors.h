// Descriptors that are held back for calls that must not fail when the process has no others left.
#pragma once

#include <sys/eventfd.h>

#include <array>
#include <cerrno>

#include "base/posix.h"

namespace reap {

class SpareDescriptors {
 public:
  // Holds all of them again, as far as possible. Returns 0 or a negative errno.
  int hold() {
    for (UniqueFd& fd : spare_) {
      if (!fd) fd.reset(::eventfd(0, EFD_CLOEXEC));
      if (!fd) return -errno;
    }
    return 0;
  }
  void release() {
    for (UniqueFd& fd : spare_) fd.reset();
  }

  // Makes them available to the calls of a scope.
  class Use {
   public:
    explicit Use(SpareDescriptors& spare) : spare_(spare) { spare_.release(); }
    ~Use() { spare_.hold(); }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    SpareDescriptors& spare_;
  };

 private:
  // A handshake needs these: the connection, the peer's pidfd, its userfaultfd and that one's
  // fdinfo.
  std::array<UniqueFd, 4> spare_;
};

}  // namespace reap
