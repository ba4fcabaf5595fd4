#include "userfault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>

namespace reap::guest {

namespace {

constexpr int kFlags = O_CLOEXEC | O_NONBLOCK;

int open_from_device() {
  UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return device ? ::ioctl(device.get(), USERFAULTFD_IOC_NEW, kFlags) : -1;
}

int open_by_system_call(int flags) {
  return static_cast<int>(::syscall(SYS_userfaultfd, kFlags | flags));
}

}  // namespace

Error Userfault::open(Userfault* userfault, bool user_mode_only) {
  int fd = -1;
  if (!user_mode_only) {
    fd = open_from_device();
    if (fd < 0) fd = open_by_system_call(0);
    user_mode_only = fd < 0;
  }
  if (user_mode_only) fd = open_by_system_call(UFFD_USER_MODE_ONLY);
  if (fd < 0) {
    Error error = system_error("create a userfaultfd", errno);
    error.message +=
        "; allow it with `sudo setfacl -m u:$USER:rw /dev/userfaultfd` "
        "or `sudo sysctl vm.unprivileged_userfaultfd=1`";
    return error;
  }
  userfault->fd.reset(fd);
  userfault->user_mode_only = user_mode_only;

  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_EVENT_REMOVE;
  if (::ioctl(fd, UFFDIO_API, &api) != 0) return system_error("agree on the uffd API", errno);
  return {};
}

Error Userfault::register_missing(void* memory, size_t bytes) const {
  uffdio_register request{};
  request.range = {reinterpret_cast<uintptr_t>(memory), bytes};
  request.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (::ioctl(fd.get(), UFFDIO_REGISTER, &request) != 0) {
    return system_error("register memory with the userfaultfd", errno);
  }
  return {};
}

Error Userfault::unregister(void* memory, size_t bytes) const {
  uffdio_range range{reinterpret_cast<uintptr_t>(memory), bytes};
  if (::ioctl(fd.get(), UFFDIO_UNREGISTER, &range) != 0) {
    return system_error("unregister memory from the userfaultfd", errno);
  }
  return {};
}

}  // namespace reap::guest
