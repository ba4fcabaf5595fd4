// reap-interposer.so: functions that replace the C library's in a VMM started with LD_PRELOAD.
#include "kernel.h"
#include "memory_file.h"
#include "message.h"

namespace {

using namespace reap::interposer;

// A private writable mapping is a VMM's memory; a process that only reads the file is left alone.
bool may_be_memory(int protection, int flags, int fd) {
  return (protection & PROT_WRITE) && !(flags & MAP_ANONYMOUS) && fd >= 0;
}

bool is_collecting() { return phase.load(std::memory_order_acquire) == Phase::collecting; }

bool is_serving() { return phase.load(std::memory_order_acquire) == Phase::served; }

void* map(const MapCall& call) {
  const bool replaces = (call.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) == MAP_FIXED;
  if (replaces && is_collecting()) before_change(call.address, call.length);
  // Checked first: this call may be the one that starts the serving.
  const bool was_serving = is_serving();
  void* mapped = may_be_memory(call.protection, call.flags, call.fd)
                     ? map_file(call)
                     : kernel::mmap(call.address, call.length, call.protection, call.flags, call.fd,
                                    call.offset);
  if (replaces && was_serving && mapped != MAP_FAILED) after_loss(mapped, call.length);
  return mapped;
}

}  // namespace

#define REAP_EXPORT extern "C" __attribute__((visibility("default")))

REAP_EXPORT void* mmap(void* address, size_t length, int protection, int flags, int fd,
                       off_t offset) {
  return map({address, length, protection, flags, fd, offset});
}

// The same with a 64-bit off_t.
REAP_EXPORT void* mmap64(void* address, size_t length, int protection, int flags, int fd,
                         off64_t offset) {
  return map({address, length, protection, flags, fd, offset});
}

REAP_EXPORT int munmap(void* address, size_t length) {
  if (is_collecting()) before_change(address, length);
  const int result = kernel::munmap(address, length);
  if (result == 0 && is_serving()) after_loss(address, length);
  return result;
}

REAP_EXPORT int mprotect(void* address, size_t length, int protection) {
  if (is_collecting()) before_change(address, length);
  return kernel::mprotect(address, length, protection);
}

// Served memory is not moved. Moved memory leaves userfaultfd (unless UFFD_FEATURE_EVENT_REMAP is
// enabled), and grown memory has no bytes for the new part: both would read zeros. Declared with an
// ellipsis, which passes the fifth argument like any other.
REAP_EXPORT void* reap_mremap(void* address, size_t length, size_t new_length, int flags,
                              void* new_address) __asm__("mremap");

void* reap_mremap(void* address, size_t length, size_t new_length, int flags, void* new_address) {
  if (is_collecting()) {
    before_change(address, length);
    if (flags & MREMAP_FIXED) before_change(new_address, new_length);
  }
  const bool shrinks = new_length <= length && !(flags & ~MREMAP_MAYMOVE);
  if (!shrinks && is_serving() && is_served(address, length)) {
    say({"served memory can neither move nor grow: mremap() is refused"});
    errno = EINVAL;
    return MAP_FAILED;
  }
  void* moved = kernel::mremap(address, length, new_length, flags, new_address);
  if (moved != MAP_FAILED && is_serving()) {
    if (flags & MREMAP_FIXED) after_loss(moved, new_length);
    if (shrinks) after_loss(static_cast<uint8_t*>(address) + new_length, length - new_length);
  }
  return moved;
}
