#include "handshake/receiver.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "uffd/uffd.h"

// Linux 6.5.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace reap {

namespace {

constexpr size_t kReceiveBytes = 64 << 10;
constexpr size_t kMaxDescriptors = 16;

Failure socket_failure(const char* syscall, int error, const char* check = "") {
  Failure failure;
  failure.code = ErrorCode::socket;
  failure.err = -error;
  failure.syscall = syscall;
  failure.check = check;
  return failure;
}

// True if `path` is a socket without a listener: its owner died without removing it.
bool is_stale_socket(const std::string& path, const sockaddr_un& address) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 &&
         errno == ECONNREFUSED;
}

}  // namespace

Listener& Listener::operator=(Listener&& other) noexcept {
  if (this != &other) {
    close();
    fd_ = std::move(other.fd_);
    path_ = std::exchange(other.path_, {});
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

Failure Listener::open(const std::string& path, std::optional<uid_t> peer_uid) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return socket_failure("bind", ENAMETOOLONG, "path-length");
  }
  std::memcpy(address.sun_path, path.data(), path.size());

  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return socket_failure("socket", errno);
  // bind() creates the path with the mode of the unbound socket (unix_bind_bsd), so at no moment
  // can others connect.
  if (::fchmod(fd.get(), 0600) != 0) return socket_failure("fchmod", errno);
  const auto* bound = reinterpret_cast<const sockaddr*>(&address);
  if (::bind(fd.get(), bound, sizeof address) != 0) {
    if (errno != EADDRINUSE) return socket_failure("bind", errno);
    if (!is_stale_socket(path, address)) return socket_failure("bind", EADDRINUSE, "in-use");
    ::unlink(path.c_str());
    if (::bind(fd.get(), bound, sizeof address) != 0) return socket_failure("bind", errno);
  }
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return socket_failure("lstat", errno);
  fd_ = std::move(fd);
  path_ = path;
  device_ = status.st_dev;
  inode_ = status.st_ino;

  Failure failure;
  if (peer_uid && ::chown(path.c_str(), *peer_uid, static_cast<gid_t>(-1)) != 0) {
    failure = socket_failure("chown", errno, "peer-uid");
  } else if (::listen(fd_.get(), 8) != 0) {
    failure = socket_failure("listen", errno);
  }
  if (failure) close();
  return failure;
}

UniqueFd Listener::accept(int* err) {
  *err = 0;
  UniqueFd connection(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) *err = -errno;
  return connection;
}

void Listener::close() {
  if (!fd_) return;
  // Another process may have replaced the socket.
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  fd_.reset();
}

Peer identify_peer(int connection) {
  Peer peer;
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    credentials.uid = static_cast<uid_t>(-1);
  }
  peer.pid = credentials.pid;
  peer.uid = credentials.uid;
  int pidfd = -1;
  size = sizeof pidfd;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) != 0) {
    // Only if the kernel lacks the option: any other error means that the peer has exited, and its
    // pid may have been reused.
    pidfd = errno == ENOPROTOOPT && peer.pid > 0
                ? static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0))
                : -1;
  }
  peer.pidfd.reset(pidfd);
  return peer;
}

bool HandshakeReceiver::got_uffd() const {
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
    if ((header.msg_flags & MSG_CTRUNC) || descriptors_.size() > 1) {
      return refuse("descriptors", 0, 1, descriptors_.size());
    }
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
  if (!got_uffd()) return refuse("not-a-userfaultfd");
  if (const char* feature = uffd::unsupported_feature(descriptors_.front().get())) {
    refuse(feature);
    failure_.code = ErrorCode::vmm_unsupported;
    return State::refused;
  }
  return State::complete;
}

}  // namespace reap
