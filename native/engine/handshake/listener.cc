#include "handshake/listener.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/test_hooks.h"

// Linux 6.5.
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

namespace reap {

namespace {

constexpr int kPathFlags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
// Maximum wait for the lock of a folder, in milliseconds. It is held for a few system calls; who
// holds it longer is not one of us.
constexpr int kLockPatience = 200;

Failure socket_failure(const char* syscall, int error, const char* check = "") {
  Failure failure = failed_call(ErrorCode::socket, -error, syscall);
  if (*check != '\0') failure.check = check;
  return failure;
}

const sockaddr* generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

// True if the file is a socket that its owner has left behind. The probe is a socket of another
// type, which a living one refuses without noticing: EPROTOTYPE, from bind() on.
bool is_stale_socket(int file) {
  struct stat status {};
  if (::fstat(file, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d", file);
  const UniqueFd probe(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return probe && ::connect(probe.get(), generic(address), sizeof address) != 0 &&
         errno == ECONNREFUSED;
}

// The lock of the folder that contains `path`, as far as it can be had.
UniqueFd lock_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  for (int i = 0; lock && i < kLockPatience && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0; ++i) {
    REAP_HOOK(waits_for_folder);
    ::usleep(1000);
  }
  return lock;
}

// Binds to a path that exists, if it is a stale socket. Of two handlers that find the same one, the
// slower would remove the socket of the faster: hence the lock from the look to bind(). Test: "of
// two handlers that start at once over a stale socket one wins, and it works".
Failure replace_stale(int fd, const std::string& path, const sockaddr_un& address) {
  const UniqueFd lock = lock_folder_of(path);
  const UniqueFd found(::open(path.c_str(), kPathFlags));
  // Another bind() may have made the file and not yet bound its socket to it, which looks stale. It
  // locks the folder for both, so after this one fails, that is over (unix_bind_bsd()).
  if (::bind(fd, generic(address), sizeof address) == 0) return {};
  if (found) {
    if (!is_stale_socket(found.get())) return socket_failure("bind", EADDRINUSE, "in-use");
    REAP_HOOK(before_replace);
    ::unlink(path.c_str());
  }
  if (::bind(fd, generic(address), sizeof address) == 0) return {};
  return socket_failure("bind", errno, errno == EADDRINUSE ? "in-use" : "");
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
  if (::bind(fd.get(), generic(address), sizeof address) != 0) {
    if (errno != EADDRINUSE) return socket_failure("bind", errno);
    if (Failure failure = replace_stale(fd.get(), path, address)) return failure;
  }
  fd_ = std::move(fd);
  path_ = path;
  REAP_HOOK(after_bind);
  Failure failure = own(peer_uid);
  if (!failure && ::listen(fd_.get(), kBacklog) != 0) failure = socket_failure("listen", errno);
  if (failure) close();
  return failure;
}

// Gives the socket to its peer. The folder may be the peer's, as in a jail, so by now the path may
// be a link to any file, or a hard link: only what the descriptor refers to is given away. Test:
// "a socket that is swapped for a link gives nothing away".
Failure Listener::own(std::optional<uid_t> peer_uid) {
  device_ = 0;
  inode_ = 0;
  const UniqueFd file(::open(path_.c_str(), kPathFlags));
  if (!file) return socket_failure("open", errno);
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return socket_failure("fstat", errno);
  const bool is_ours = S_ISSOCK(status.st_mode) && status.st_nlink == 1 &&
                       (!peer_uid || status.st_uid == ::geteuid());
  if (!is_ours) return socket_failure("", 0, "replaced");
  device_ = status.st_dev;
  inode_ = status.st_ino;
  constexpr auto kSameGroup = static_cast<gid_t>(-1);
  REAP_HOOK(before_give_away);
  if (peer_uid && ::fchownat(file.get(), "", *peer_uid, kSameGroup, AT_EMPTY_PATH) != 0) {
    return socket_failure("chown", errno, "peer-uid");
  }
  return {};
}

UniqueFd Listener::accept(int* err) {
  *err = 0;
  UniqueFd connection(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!connection && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) *err = -errno;
  return connection;
}

bool Listener::has_waiting_peer() const {
  pollfd waiting{fd_.get(), POLLIN, 0};
  return ::poll(&waiting, 1, 0) > 0;
}

void Listener::close() {
  if (!fd_) return;
  // Another process may have replaced the socket. Who does so after this look may write to the
  // folder, and gains nothing: the name is removed, and not followed.
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
  fd_.reset();
}

int Peer::signal(int number) const {
  return ::syscall(SYS_pidfd_send_signal, pidfd.get(), number, nullptr, 0) == 0 ? 0 : -errno;
}

int identify_peer(int connection, Peer* peer) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    credentials.uid = static_cast<uid_t>(-1);
  }
  peer->pid = credentials.pid;
  peer->uid = credentials.uid;
  int pidfd = -1;
  size = sizeof pidfd;
  if (::getsockopt(connection, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) != 0) {
    // Only if the kernel lacks the option: any other error means that the peer has exited, and its
    // pid may have been reused.
    pidfd = errno == ENOPROTOOPT && peer->pid > 0
                ? static_cast<int>(::syscall(SYS_pidfd_open, peer->pid, 0))
                : -1;
  }
  const bool is_full = pidfd < 0 && (errno == EMFILE || errno == ENFILE);
  const int error = is_full ? -errno : 0;
  peer->pidfd.reset(pidfd);
  return error;
}

}  // namespace reap
