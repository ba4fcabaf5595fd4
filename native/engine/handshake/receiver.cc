#include "handshake/receiver.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "uffd/uffd.h"

namespace reap {

namespace {

constexpr size_t kReceiveBytes = 64 << 10;
constexpr size_t kMaxDescriptors = 16;

}  // namespace

bool HandshakeReceiver::guest_depends_on_us() const {
  if (lost_descriptor_) return true;
  for (const UniqueFd& descriptor : descriptors_) {
    if (uffd::is_userfaultfd(descriptor.get())) return true;
  }
  return false;
}

HandshakeReceiver::State HandshakeReceiver::refuse(const char* check, uint64_t offset,
                                                   uint64_t want, uint64_t got) {
  failure_.code = ErrorCode::handshake_invalid;
  failure_.check = check;
  failure_.offset = offset;
  failure_.want = want;
  failure_.got = got;
  return State::refused;
}

// The message had room for more descriptors: the kernel could not install one, because the table is
// full or a security module forbids it (scm_detach_fds()).
HandshakeReceiver::State HandshakeReceiver::refuse_truncated_control(int connection) {
  lost_descriptor_ = true;
  const UniqueFd another(::fcntl(connection, F_DUPFD_CLOEXEC, 0));
  if (another) return refuse("descriptor-lost");
  failure_ = failed_call(ErrorCode::handshake_invalid, -errno, "recvmsg");
  return State::refused;
}

HandshakeReceiver::State HandshakeReceiver::receive(int connection, const HandshakeLimits& limits) {
  char bytes[kReceiveBytes];
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  for (;;) {
    iovec part{bytes, sizeof bytes};
    msghdr header{};
    header.msg_iov = &part;
    header.msg_iovlen = 1;
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    // Close-on-exec is not transferred with a descriptor.
    const ssize_t got = ::recvmsg(connection, &header, MSG_CMSG_CLOEXEC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return State::incomplete;
      failure_.err = -errno;
      failure_.syscall = "recvmsg";
      return refuse("connection");
    }
    for (cmsghdr* c = CMSG_FIRSTHDR(&header); c; c = CMSG_NXTHDR(&header, c)) {
      if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
        descriptors_.emplace_back(fd);
      }
    }
    // Refused at once, or a peer could fill our descriptor table, a few descriptors with each byte.
    if (descriptors_.size() > 1) return refuse("descriptors", 0, 1, descriptors_.size());
    if (header.msg_flags & MSG_CTRUNC) return refuse_truncated_control(connection);
    if (got == 0) return refuse("truncated", message_.size());
    if (message_.size() + static_cast<size_t>(got) > kMaxHandshakeBytes) {
      return refuse("too-large", message_.size(), kMaxHandshakeBytes);
    }
    message_.append(bytes, static_cast<size_t>(got));
    switch (scanner_.feed(bytes, static_cast<size_t>(got))) {
      case MessageScanner::State::incomplete:
        break;
      case MessageScanner::State::invalid:
      case MessageScanner::State::complete:
        // The parser finds the offending byte.
        return finish(limits);
    }
  }
}

HandshakeReceiver::State HandshakeReceiver::finish(const HandshakeLimits& limits) {
  HandshakeRefusal why{};
  if (!parse_handshake(message_, limits, &handshake_, &why)) {
    return refuse(why.check, why.offset, why.want, why.got);
  }
  if (descriptors_.size() != 1) return refuse("descriptors", 0, 1, descriptors_.size());
  if (!guest_depends_on_us()) return refuse("not-a-userfaultfd");
  if (const char* feature = uffd::unsupported_feature(descriptors_.front().get())) {
    refuse(feature);
    failure_.code = ErrorCode::vmm_unsupported;
    return State::refused;
  }
  return State::complete;
}

}  // namespace reap
