#include "announcement.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "base/posix.h"

// Linux 5.11; present in Debian 12's header, not in all older ones.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
// Linux 6.1.
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace reap::interposer {

namespace {

// A handler's poll() needs O_NONBLOCK (userfaultfd(2)).
constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

// Timeout for connect() and for the handler to read the message: as long as our handler waits for
// it. No signal but SIGKILL interrupts it.
constexpr int kConnectSeconds = 5;

// A VMM that was started without stdin may later replace descriptors 0, 1 and 2.
UniqueFd above_standard(UniqueFd fd) {
  if (!fd || fd.get() > STDERR_FILENO) return fd;
  return UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
}

UniqueFd open_device() {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return UniqueFd(device ? ::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags) : -1);
}

UniqueFd open_syscall(int flags) {
  return UniqueFd(static_cast<int>(::syscall(SYS_userfaultfd, kFlags | flags)));
}

// The longest message has kMaxParts regions with numbers of 20 digits.
struct Message {
  char text[kMaxParts * 192];
  size_t bytes = 0;
};

void compose(const Part* parts, size_t count, Message* message) {
  const auto page = static_cast<unsigned long long>(::getpagesize());
  const char* before = "[";
  for (size_t i = 0; i < count; ++i) {
    const int added = std::snprintf(
        message->text + message->bytes, sizeof message->text - message->bytes,
        "%s{\"base_host_virt_addr\":%llu,\"size\":%llu,\"offset\":%llu,\"page_size\":%llu,"
        // Bytes, despite its name.
        "\"page_size_kib\":%llu}",
        before, static_cast<unsigned long long>(reinterpret_cast<uintptr_t>(parts[i].address)),
        static_cast<unsigned long long>(parts[i].length),
        static_cast<unsigned long long>(parts[i].offset), page, page);
    message->bytes += static_cast<size_t>(added);
    before = ",";
  }
  message->text[message->bytes++] = ']';
}

int connect_to(int socket, const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path, sizeof address.sun_path - 1);
  const auto* to = reinterpret_cast<const sockaddr*>(&address);
  // With a full backlog connect() waits, and fails with EAGAIN after the send timeout (socket(7)).
  const timeval patience{kConnectSeconds, 0};
  if (::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) return -errno;
  while (::connect(socket, to, sizeof address) != 0) {
    if (errno != EINTR) return errno == EAGAIN ? -ETIMEDOUT : -errno;
  }
  return 0;
}

int send_with(int socket, const Message& message, int fd) {
  iovec part{const_cast<char*>(message.text), message.bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  cmsghdr* rights = CMSG_FIRSTHDR(&header);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
  for (;;) {
    const ssize_t sent = ::sendmsg(socket, &header, MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(message.bytes)) return 0;
    if (sent >= 0) return -EMSGSIZE;
    if (errno != EINTR) return -errno;
  }
}

// connect() and sendmsg() succeed without accept(): also with a handler that is about to close its
// listener, or to refuse this user. The process that reads the message is the one that serves.
int wait_until_read(int socket) {
  constexpr long kShortest = 50'000;
  constexpr long kMaxTime = 10'000'000;
  constexpr long kInAll = kConnectSeconds * 1'000'000'000L;
  long slice = kShortest;
  for (long waited = 0;; waited += slice, slice = std::min(2 * slice, kMaxTime)) {
    int unread = 0;
    if (::ioctl(socket, SIOCOUTQ, &unread) != 0) return -errno;
    // After the check of the queue: closing with an unread message sets ECONNRESET, and then drops
    // the message.
    int error = 0;
    socklen_t size = sizeof error;
    if (::getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return -errno;
    if (error != 0) return -error;
    if (unread == 0) return 0;
    // A later reader gets a userfaultfd without registered ranges, and can do no harm.
    if (waited >= kInAll) return -ETIMEDOUT;
    const timespec pause{0, slice};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace

int Userfault::open() {
  UniqueFd opened = open_device();
  if (!opened) opened = open_syscall(0);
  const bool user_mode = !opened;
  if (!opened) opened = open_syscall(UFFD_USER_MODE_ONLY);
  if (opened) opened = above_standard(std::move(opened));
  if (!opened) return -errno;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_REMOVE;
  if (::ioctl(opened.get(), UFFDIO_API, &api) != 0) return -errno;
  fd = opened.release();
  user_mode_only = user_mode;
  return 0;
}

int Userfault::register_missing(const Part& part) const {
  uffdio_register request{};
  request.range = {reinterpret_cast<uintptr_t>(part.address), part.length};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  return ::ioctl(fd, UFFDIO_REGISTER, &request) == 0 ? 0 : -errno;
}

void Userfault::wake(const Part& part) const {
  uffdio_range range{reinterpret_cast<uintptr_t>(part.address), part.length};
  ::ioctl(fd, UFFDIO_WAKE, &range);
}

void Userfault::close() {
  if (fd < 0) return;
  // A madvise() blocks until its REMOVE event is read.
  uffd_msg message;
  while (::read(fd, &message, sizeof message) > 0) continue;
  ::close(std::exchange(fd, -1));
}

int announce(const char* socket_path, const Part* parts, size_t count, int userfaultfd) {
  UniqueFd socket = above_standard(UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)));
  if (!socket) return -errno;
  if (const int error = connect_to(socket.get(), socket_path)) return error;
  Message message;
  compose(parts, count, &message);
  if (const int error = send_with(socket.get(), message, userfaultfd)) return error;
  if (const int error = wait_until_read(socket.get())) return error;
  socket.release();
  return 0;
}

}  // namespace reap::interposer
