// Commands that map a memory file as in a VMM without userfaultfd support, and change the mapping
// as such a VMM may. With the interposer that memory is served.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>

#include "command.h"
#include "vmm.h"

namespace reap::guest {

namespace {

Error map_failed(int number) { return system_error("map the file", number); }

// Permissions and path of the mapping at an address, from /proc/self/maps.
std::string describe(const void* address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream words(line);
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char dash = 0;
    std::string permissions, offset, device, inode, path;
    words >> std::hex >> begin >> dash >> end >> permissions >> offset >> device >> inode >> path;
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (at < begin || end <= at) continue;
    if (!path.empty()) permissions.append(" ").append(path);
    return permissions;
  }
  return "";
}

// Inside a larger range without access, like VMMs that place guards around their memory.
void* reserve(size_t bytes) {
  constexpr size_t kAround = 2 << 20;
  void* data = ::mmap(nullptr, bytes + 2 * kAround, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return data == MAP_FAILED ? nullptr : static_cast<uint8_t*>(data) + kAround;
}

Answer map_file(Vmm& vmm, const Call& call) {
  const size_t length = call.number(2);
  const std::string kind = call.text("as", "memory");
  const std::string flag = call.text("flag", "");
  const bool writes = kind != "readonly";
  const UniqueFd fd(::open(call.text(0).c_str(), (writes ? O_RDWR : O_RDONLY) | O_CLOEXEC));
  if (!fd) return system_error("open " + call.text(0), errno);

  void* at = reinterpret_cast<void*>(call.number("at", 0));
  if (call.has("reserved")) at = reserve(length);
  int flags = kind == "shared" ? MAP_SHARED : MAP_PRIVATE;
  if (at) flags |= flag == "noreplace" ? MAP_FIXED_NOREPLACE : MAP_FIXED;
  if (flag == "populate") flags |= MAP_POPULATE;
  if (flag == "locked") flags |= MAP_LOCKED;
  const int protection = PROT_READ | (writes ? PROT_WRITE : 0);
  errno = 0;
  void* data = ::mmap(at, length, protection, flags, fd.get(), static_cast<off_t>(call.number(1)));
  if (data == MAP_FAILED) return map_failed(errno);
  const int number = errno;
  if (!call.has("aside")) vmm.memory.adopt(data, length, call.number(1));
  return Answer()
      .text("address", std::to_string(reinterpret_cast<uintptr_t>(data)))
      .boolean("where", !at || data == at)
      .number("errnoAfter", number)
      .text("mapping", describe(data));
}

bool is_same(const uint8_t* data, int fd, uint64_t offset, size_t length) {
  std::vector<uint8_t> bytes(length);
  const ssize_t got = ::pread(fd, bytes.data(), length, static_cast<off_t>(offset));
  return got == static_cast<ssize_t>(length) && std::memcmp(bytes.data(), data, length) == 0;
}

Answer compare(Vmm&, const Call& call) {
  const UniqueFd fd(::open(call.text(1).c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + call.text(1), errno);
  const auto* data = reinterpret_cast<const uint8_t*>(call.number(0));
  return Answer()
      .boolean("same", is_same(data, fd.get(), call.number(2), call.number(3)))
      .text("mapping", describe(data));
}

// Each thread maps all of the file, or with parts=1 one part of it.
Answer map_at_once(Vmm& vmm, const Call& call) {
  const UniqueFd fd(::open(call.text(0).c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return system_error("open " + call.text(0), errno);
  const auto bytes = static_cast<size_t>(::lseek(fd.get(), 0, SEEK_END));
  const size_t count = call.number(1);
  const bool parts = call.has("parts");
  const size_t length = parts ? bytes / count : bytes;
  std::vector<void*> data(count, MAP_FAILED);
  run_threads(count, [&](size_t i) {
    data[i] = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd.get(),
                     static_cast<off_t>(parts ? i * length : 0));
  });
  int64_t served = 0;
  int64_t wrong = 0;
  for (size_t i = 0; i < count; i++) {
    if (data[i] == MAP_FAILED) return map_failed(ENOMEM);
    if (describe(data[i]) == "rw-p") served++;
    const uint64_t offset = parts ? i * length : 0;
    if (!is_same(static_cast<const uint8_t*>(data[i]), fd.get(), offset, length)) wrong++;
    if (parts) vmm.memory.adopt(data[i], length, offset);
  }
  return Answer().number("served", served).number("wrong", wrong);
}

Answer move(Vmm& vmm, const Call& call) {
  if (Error error = vmm.check_pages(call.number(0), call.number(1))) return error;
  const uint64_t page = vmm.memory.page_size();
  void* moved = ::mremap(vmm.memory.page(call.number(0)), call.number(1) * page,
                         call.number(2) * page, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) return system_error("move memory", errno);
  return Answer().text("address", std::to_string(reinterpret_cast<uintptr_t>(moved)));
}

// A child that reads a page, and the signal that killed it.
Answer read_in_child(Vmm& vmm, const Call& call) {
  if (Error error = vmm.check_pages(call.number(0), 1)) return error;
  const volatile uint8_t* page = vmm.memory.page(call.number(0));
  const pid_t child = ::fork();
  if (child == 0) ::_exit(*page == 0 ? 0 : 1);
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return system_error("fork", errno);
  return Answer().number("signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

// A child that inherits the VMM's descriptors, and exits with it.
Answer leave_child(Vmm&, const Call&) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return system_error("fork", errno);
  if (child > 0) return Answer().number("pid", child);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // The signal is not sent if the parent exited before the prctl() call.
  if (::getppid() != parent) ::_exit(0);
  for (;;) ::pause();
}

Answer close_descriptors(Vmm&, const Call&) {
  for (int fd = STDERR_FILENO + 1; fd < 256; fd++) ::close(fd);
  return {};
}

Answer lock_future(Vmm&, const Call&) {
  if (::mlockall(MCL_FUTURE) != 0) return system_error("lock memory", errno);
  return {};
}

}  // namespace

const std::vector<Command> kMappingCommands = {
    {"map-file",
     "FILE OFFSET LENGTH [as=memory|shared|readonly] [at=ADDRESS] [reserved=1] "
     "[flag=populate|locked|noreplace] [aside=1]",
     map_file},
    {"compare", "ADDRESS FILE OFFSET LENGTH", compare},
    {"map-at-once", "FILE THREADS [parts=1]", map_at_once},
    {"move", "FIRST COUNT NEW_COUNT", move},
    {"read-in-child", "PAGE", read_in_child},
    {"leave-child", "", leave_child},
    {"close-descriptors", "", close_descriptors},
    {"lock-future", "", lock_future},
};

}  // namespace reap::guest
