#include "uffd/uffd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/test_hooks.h"

// Linux 5.11; present in Debian 12's header, not in all older ones.
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
// Linux 6.1.
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

namespace reap::uffd {

Result classify(int error, int64_t done, uint64_t length) {
  if (error == 0) return {Outcome::installed, length, 0};
  if (done > 0) return {Outcome::partial, static_cast<uint64_t>(done), -error};
  // The field repeats the errno if the kernel got as far as writing it; argument checks, ESRCH and
  // (before 6.15) EAGAIN return earlier and leave it at 0.
  switch (error) {
    case EEXIST:
      return {Outcome::present, 0, -error};
    case EAGAIN:
      return {Outcome::deferred, 0, -error};
    case ENOENT:
      return {Outcome::unregistered, 0, -error};
    case ENOMEM:
      return {Outcome::no_memory, 0, -error};
    case ESRCH:
      return {Outcome::gone, 0, -error};
    default:
      return {Outcome::failed, 0, -error};
  }
}

Result copy(int uffd, uint64_t address, const void* source, uint64_t length) {
  uffdio_copy request{};
  request.dst = address;
  request.src = reinterpret_cast<uintptr_t>(source);
  request.len = length;
  const int error = ::ioctl(uffd, UFFDIO_COPY, &request) == 0 ? 0 : errno;
  return classify(error, request.copy, length);
}

Result zeropage(int uffd, uint64_t address, uint64_t length) {
  uffdio_zeropage request{};
  request.range.start = address;
  request.range.len = length;
  const int error = ::ioctl(uffd, UFFDIO_ZEROPAGE, &request) == 0 ? 0 : errno;
  return classify(error, request.zeropage, length);
}

int wake(int uffd, uint64_t address, uint64_t length) {
  uffdio_range range{address, length};
  return ::ioctl(uffd, UFFDIO_WAKE, &range) == 0 ? 0 : -errno;
}

namespace {

// errno of a request that changes no page: memory that is not registered for write protection has
// ENOENT.
int probe(int uffd, uint64_t address, uint64_t length) {
  uffdio_writeprotect request{};
  request.range.start = address;
  request.range.len = length;
  return ::ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0 ? 0 : errno;
}

}  // namespace

bool is_changing(int uffd, uint64_t address, uint64_t length) {
  return probe(uffd, address, length) == EAGAIN;
}

int unregister(int uffd, uint64_t address, uint64_t length) {
  uffdio_range range{address, length};
  if (::ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0) return 0;
  const int error = errno;
  // Where the VMM's address space is gone, UFFDIO_UNREGISTER has ENOMEM and not ESRCH as the others
  // (userfaultfd_unregister() of Linux 4.3 to 6.18).
  return error == ENOMEM && probe(uffd, address, length) == ESRCH ? -ESRCH : -error;
}

bool has_messages(int uffd) {
  pollfd wait{uffd, POLLIN, 0};
  return ::poll(&wait, 1, 0) > 0 && (wait.revents & POLLIN);
}

int read_messages(int uffd, uffd_msg* messages, size_t capacity) {
  // O_NONBLOCK belongs to the open file, which the VMM shares and may clear. RWF_NOWAIT belongs to
  // this call; a userfaultfd without read_iter (before 6.10) does not accept it.
  if (REAP_HOOK_SAYS(messages_are_late)) return 0;
  iovec part{messages, capacity * sizeof(uffd_msg)};
  for (;;) {
    ssize_t got = ::preadv2(uffd, &part, 1, -1, RWF_NOWAIT);
    if (got < 0 && (errno == EOPNOTSUPP || errno == ESPIPE)) {
      got = ::read(uffd, messages, capacity * sizeof(uffd_msg));
    }
    if (got >= 0) return static_cast<int>(static_cast<size_t>(got) / sizeof(uffd_msg));
    // EAGAIN after POLLIN is normal: another thread's install has resolved the fault.
    if (errno == EAGAIN) return 0;
    if (errno != EINTR) return -errno;
  }
}

const char* unsupported_event(const uffd_msg& message) {
  if (message.event == UFFD_EVENT_FORK) return "fork";
  if (message.event != UFFD_EVENT_PAGEFAULT) return nullptr;
  const uint64_t flags = message.arg.pagefault.flags;
  if (flags & UFFD_PAGEFAULT_FLAG_WP) return "write-protect-fault";
  if (flags & UFFD_PAGEFAULT_FLAG_MINOR) return "minor-fault";
  return nullptr;
}

void make_nonblocking(int uffd) {
  const int flags = ::fcntl(uffd, F_GETFL);
  if (flags >= 0 && !(flags & O_NONBLOCK)) ::fcntl(uffd, F_SETFL, flags | O_NONBLOCK);
}

// The name tells. Where /proc is not mounted, an ioctl of userfaultfds does, which refuses an empty
// range; not on other than anonymous inodes, which alone have no type: a FUSE server could leave it
// unanswered.
bool is_userfaultfd(int fd) {
  char link[64];
  char target[64];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length =
      REAP_HOOK_SAYS(lacks_proc) ? -1 : ::readlink(link, target, sizeof target - 1);
  if (length < 0) {
    struct stat status {};
    if (::fstat(fd, &status) != 0 || (status.st_mode & S_IFMT) != 0) return false;
    return wake(fd, 0, 0) == -EINVAL;
  }
  target[length] = '\0';
  return std::strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

const char* unsupported_feature(int uffd) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", uffd);
  const UniqueFd info(::open(path, O_RDONLY | O_CLOEXEC));
  char text[512];
  const int64_t length = info ? read_whole(info.get(), 0, text, sizeof text - 1) : 0;
  if (length <= 0) return nullptr;
  text[length] = '\0';
  // "API:", the version, and the features of UFFDIO_API (userfaultfd_show_fdinfo()).
  const char* const api = std::strstr(text, "API:");
  unsigned long long version = 0;
  unsigned long long features = 0;
  if (!api || std::sscanf(api, "API: %llx:%llx", &version, &features) != 2) return nullptr;
  if (features & UFFD_FEATURE_EVENT_FORK) return "fork";
  return features & UFFD_FEATURE_SIGBUS ? "sigbus" : nullptr;
}

namespace {

// Returns 0 and the kernel's features if the UFFDIO_API handshake succeeds.
int try_api(int fd, uint64_t* features) {
  if (fd < 0) return -errno;
  const UniqueFd owned(fd);
  uffdio_api api{};
  api.api = UFFD_API;
  if (::ioctl(fd, UFFDIO_API, &api) != 0) return -errno;
  if (*features == 0) *features = api.features;
  return 0;
}

int open_device() {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device) return -1;
  return ::ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
}

int open_syscall(int flags) {
  return static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags));
}

}  // namespace

Availability probe() {
  Availability found{};
  found.device = try_api(open_device(), &found.features);
  found.syscall = try_api(open_syscall(0), &found.features);
  found.user_mode_only = try_api(open_syscall(UFFD_USER_MODE_ONLY), &found.features);
  return found;
}

}  // namespace reap::uffd
