#include "memory_file.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "announcement.h"
#include "kernel.h"
#include "lock.h"
#include "message.h"
#include "settings.h"
#include "watcher.h"

namespace reap::interposer {

std::atomic<Phase> phase{Phase::idle};

namespace {

// EX_UNAVAILABLE of sysexits.h.
constexpr int kStopStatus = 69;

// The process whose mappings count, from its first private one on: a forked child has neither the
// parts nor the right to announce them.
std::atomic<pid_t> owner{0};
std::atomic<bool> warned_shared{false};

// From the first to the last served byte, including other mappings in between: a VMM unmaps a lot,
// and most of it can be ruled out without the lock.
std::atomic<uintptr_t> served_begin{0};
std::atomic<uintptr_t> served_end{0};

// Guarded by Lock, like every step from one phase to the next.
Part parts[kMaxParts];
size_t part_count;
uint64_t file_bytes;
int file = -1;  // while parts are collected: the VMM may have closed its descriptor
Userfault userfault;
Watcher watcher;

uint64_t page_up(uint64_t bytes) {
  const auto page = static_cast<uint64_t>(::getpagesize());
  return (bytes + page - 1) / page * page;
}

void* plain(const MapCall& call) {
  return kernel::mmap(call.address, call.length, call.protection, call.flags, call.fd, call.offset);
}

// A part without length, which was unmapped, overlaps nothing.
bool overlaps(const Part& part, const void* address, size_t length) {
  const auto begin = reinterpret_cast<uintptr_t>(part.address);
  const auto other = reinterpret_cast<uintptr_t>(address);
  return part.length > 0 && other < begin + part.length &&
         begin < other + std::max<size_t>(length, 1);
}

bool is_mapped_part(const void* address, size_t length) {
  return std::any_of(parts, parts + part_count,
                     [&](const Part& part) { return overlaps(part, address, length); });
}

bool is_near_served(const void* address, size_t length) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  return begin < served_end.load() && served_begin.load() < begin + std::max<size_t>(length, 1);
}

void note_served_range() {
  uintptr_t begin = UINTPTR_MAX;
  uintptr_t end = 0;
  for (size_t i = 0; i < part_count; ++i) {
    const auto at = reinterpret_cast<uintptr_t>(parts[i].address);
    begin = std::min(begin, at);
    end = std::max(end, at + parts[i].length);
  }
  served_begin.store(begin);
  served_end.store(end);
}

Part* free_part() {
  Part* end = parts + part_count;
  Part* part = std::find_if(parts, end, [](const Part& one) { return one.length == 0; });
  if (part == end && part_count == kMaxParts) return nullptr;
  if (part == end) ++part_count;
  return part;
}

// Removes a range from the parts. A hole without a free entry stays a part: what is mapped there
// cannot move, but a served part never may.
void cut(uintptr_t begin, uintptr_t end) {
  const size_t count = part_count;
  for (size_t i = 0; i < count; ++i) {
    Part& part = parts[i];
    const auto first = reinterpret_cast<uintptr_t>(part.address);
    const uintptr_t last = first + part.length;
    if (std::max(begin, first) >= std::min(end, last)) continue;
    const size_t before = begin > first ? begin - first : 0;
    const size_t behind = end < last ? last - end : 0;
    Part tail = part;
    tail.address += part.length - behind;
    tail.offset += part.length - behind;
    tail.length = behind;
    if (before == 0) {
      part = tail;
      continue;
    }
    Part* room = behind == 0 ? nullptr : free_part();
    if (behind > 0 && !room) continue;
    part.length = before;
    if (room) *room = tail;
  }
}

// Not strerror(): it translates, which allocates.
const char* describe(int error) {
  const char* text = ::strerrordesc_np(error);
  return text ? text : "unknown error";
}

struct Reason {
  const char* text;
  int error = 0;  // negative errno, 0 if no call failed
  const char* path = "";
};

// Does not return if the process must not continue unserved.
void explain(const Reason& why) {
  const Settings& told = *settings();
  say({told.memory_file, " is not served: ", why.text, why.path, why.error == 0 ? "" : ": ",
       why.error == 0 ? "" : describe(-why.error),
       told.stop ? "; this process ends, as REAP_TRACE_WHEN_UNREACHABLE=stop asks"
                 : "; the plain file is mapped instead"});
  if (told.stop) ::_exit(kStopStatus);
}

// Leaves `idle` or `collecting` permanently.
void settle(Phase end) {
  if (phase.exchange(end) == Phase::collecting) watcher.stop();
  if (file >= 0) ::close(std::exchange(file, -1));
}

// Every part becomes the mapping that the VMM requested. No page of them has been installed, and
// every thread that touched one waits, so nothing is lost.
void give_up(const Reason& why) {
  explain(why);
  for (size_t i = 0; i < part_count; ++i) {
    const Part& part = parts[i];
    const void* at = kernel::mmap(part.address, part.length, part.protection,
                                  part.flags | MAP_FIXED, file, static_cast<off_t>(part.offset));
    if (at == MAP_FAILED) {
      say({settings()->memory_file, " cannot be mapped: ", describe(errno), "; this process ends"});
      ::_exit(kStopStatus);
    }
  }
  // A fault joins the waiters under the lock that a MAP_FIXED excludes: after it there are no new
  // ones. Not left to close(), since a forked child may have the descriptor too.
  for (size_t i = 0; i < part_count; ++i) userfault.wake(parts[i]);
  userfault.close();
  part_count = 0;
  settle(Phase::plain);
}

// On the watcher's thread: a part was touched before a handler serves it.
void on_touch() {
  const Lock lock;
  if (phase.load() == Phase::collecting) {
    give_up({"it was touched before all of it was mapped"});
  }
}

// Replaces a new mapping with registered memory. Returns 0 or a negative errno.
int replace(const Part& part) {
  // Without access, so that neither mlockall(MCL_FUTURE) nor an early touch creates zero pages
  // before the memory is registered.
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (part.flags & MAP_NORESERVE);
  if (kernel::mmap(part.address, part.length, PROT_NONE, flags, -1, 0) == MAP_FAILED) {
    return -errno;
  }
  if (const int error = userfault.register_missing(part)) return error;
  // A forked child has no userfaultfd, and would read zeros.
  if (::madvise(part.address, part.length, MADV_DONTFORK) != 0) return -errno;
  return kernel::mprotect(part.address, part.length, part.protection) == 0 ? 0 : -errno;
}

uint64_t collected_bytes() {
  uint64_t bytes = 0;
  for (size_t i = 0; i < part_count; ++i) bytes += parts[i].length;
  return bytes;
}

bool is_collected(uint64_t offset, size_t length) {
  return std::any_of(parts, parts + part_count, [&](const Part& part) {
    return offset < part.offset + part.length && part.offset < offset + length;
  });
}

// True if the file cannot be served however it is mapped; prints the reason.
bool is_unfit(const MapCall& call, const struct stat& status) {
  const KeepErrno keep;
  const auto bytes = static_cast<uint64_t>(status.st_size);
  struct statfs system {};
  if (::fstatfs(call.fd, &system) == 0 && system.f_type == HUGETLBFS_MAGIC) {
    give_up({"it is on hugetlbfs"});
  } else if (call.flags & MAP_LOCKED) {
    give_up({"it is mapped with MAP_LOCKED, which wants all of it at once"});
  } else if (bytes != page_up(bytes)) {
    give_up({"its size is not a multiple of the page size"});
  }
  return phase.load() == Phase::plain;
}

const char* unannounced(int error) {
  switch (error) {
    case -ETIMEDOUT:
      return "no fault handler has read its message at ";
    case -ECONNRESET:
    case -EPIPE:
      return "it was refused by the fault handler at ";
    default:
      return "no fault handler is at ";
  }
}

void serve_parts() {
  if (const int error = announce(settings()->socket, parts, part_count, userfault.fd)) {
    give_up({unannounced(error), error, settings()->socket});
    return;
  }
  note_served_range();
  settle(Phase::served);
  if (userfault.user_mode_only) {
    say(
        {"only faults of user mode are served: a guest under KVM fails, and so does a device that "
         "reads into missing memory; `reap-trace doctor` says what allows more"});
  }
}

// Adds a new mapping to the parts.
void collect(const Part& part) {
  parts[part_count++] = part;
  int error = part_count == 1 ? userfault.open() : 0;
  if (error != 0) {
    give_up({"no userfaultfd, see `reap-trace doctor`", error});
    return;
  }
  error = replace(part);
  if (error != 0) {
    give_up({"its memory cannot be registered", error});
    return;
  }
  if (collected_bytes() == file_bytes) {
    serve_parts();
  } else if (part_count == kMaxParts) {
    give_up({"it is mapped in more than 64 parts"});
  } else if (phase.load() == Phase::idle) {
    error = watcher.start(userfault.fd, on_touch);
    if (error == 0) {
      phase.store(Phase::collecting);
    } else {
      give_up({"no thread can be started", error});
    }
  }
}

// Maps the file, privately and writable, in a process that has not given up on it.
void* map_part(const MapCall& call, uint64_t size) {
  // First map the file as requested: its address and its errors stay the kernel's. Only
  // MAP_POPULATE is dropped, which would read the file that is about to be replaced.
  MapCall lazy = call;
  lazy.flags &= ~MAP_POPULATE;
  void* address = plain(lazy);
  const auto offset = static_cast<uint64_t>(call.offset);
  if (address == MAP_FAILED || offset >= size) return address;

  // Beyond the end of the file it stays a mapping of the file, which raises SIGBUS.
  const size_t length = std::min<uint64_t>(page_up(call.length), size - offset);
  // A mapping of bytes that another one covers already is a separate copy, as without the library.
  if (is_collected(offset, length)) return address;
  const KeepErrno keep;
  if (part_count == 0) {
    file_bytes = size;
    file = ::fcntl(call.fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (file < 0) {
      give_up({"no descriptor is left", -errno});
      return address;
    }
  }
  const int flags = call.flags & ~MAP_FIXED_NOREPLACE;
  collect({static_cast<uint8_t*>(address), length, offset, call.protection, flags});
  return address;
}

bool is_memory_file(int fd, struct stat* status) {
  const KeepErrno keep;
  const Settings* told = settings();
  struct stat wanted {};
  return told && ::fstat(fd, status) == 0 && S_ISREG(status->st_mode) &&
         ::stat(told->memory_file, &wanted) == 0 && status->st_dev == wanted.st_dev &&
         status->st_ino == wanted.st_ino;
}

void warn_shared() {
  const Phase now = phase.load();
  if (now == Phase::served || now == Phase::plain || warned_shared.exchange(true)) return;
  const KeepErrno keep;
  say({settings()->memory_file,
       " is mapped shared, and only a private mapping can be served (share=off, MAP_PRIVATE)"});
}

bool is_owner() { return owner.load() == ::getpid(); }

bool become_owner() {
  pid_t nobody = 0;
  return owner.compare_exchange_strong(nobody, ::getpid()) || is_owner();
}

}  // namespace

void* map_file(const MapCall& call) {
  struct stat status {};
  if (Lock::is_mine() || !is_memory_file(call.fd, &status)) return plain(call);
  if ((call.flags & MAP_TYPE) != MAP_PRIVATE) {
    warn_shared();
    return plain(call);
  }
  // Before the lock, which a forked child may have inherited held by another thread of its parent.
  if (!become_owner()) return plain(call);
  const Lock lock;
  if (phase.load() == Phase::served || phase.load() == Phase::plain) return plain(call);
  if (is_unfit(call, status)) return plain(call);
  return map_part(call, static_cast<uint64_t>(status.st_size));
}

void before_change(const void* address, size_t length) {
  const KeepErrno keep;
  if (Lock::is_mine() || !is_owner()) return;
  const Lock lock;
  if (phase.load() == Phase::collecting && is_mapped_part(address, length)) {
    give_up({"a part of it was changed before all of it was mapped"});
  }
}

void after_loss(const void* address, size_t length) {
  if (!is_near_served(address, length)) return;
  const KeepErrno keep;
  if (Lock::is_mine() || !is_owner()) return;
  const Lock lock;
  // Memory that shrinks to the middle of a page keeps that page.
  const auto begin = reinterpret_cast<uintptr_t>(address);
  cut(page_up(begin), page_up(begin + length));
}

bool is_served(const void* address, size_t length) {
  if (!is_near_served(address, length)) return false;
  const KeepErrno keep;
  if (Lock::is_mine() || !is_owner()) return false;
  const Lock lock;
  return phase.load() == Phase::served && is_mapped_part(address, length);
}

}  // namespace reap::interposer
