// Direct system calls in place of the interposed functions.
#pragma once

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>

namespace reap::interposer::kernel {

// Not dlsym(RTLD_NEXT): it allocates, and the caller may be the allocator.
inline void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) {
  return reinterpret_cast<void*>(
      ::syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}
inline int munmap(void* address, size_t length) {
  return static_cast<int>(::syscall(SYS_munmap, address, length));
}
inline int mprotect(void* address, size_t length, int protection) {
  return static_cast<int>(::syscall(SYS_mprotect, address, length, protection));
}
inline void* mremap(void* address, size_t length, size_t new_length, int flags, void* new_address) {
  return reinterpret_cast<void*>(
      ::syscall(SYS_mremap, address, length, new_length, flags, new_address));
}

}  // namespace reap::interposer::kernel
