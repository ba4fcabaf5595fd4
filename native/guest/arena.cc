#include "arena.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "handshake_sender.h"
#include "workload.h"

namespace reap::guest {

namespace {

Error check_size(uint64_t memory_bytes) {
  if (memory_bytes >= kMinMemoryBytes && memory_bytes % kMemoryStepBytes == 0) return {};
  return {"the memory size must be a multiple of 2 MiB and at least 128 MiB, got " +
              std::to_string(memory_bytes),
          -EINVAL};
}

Error map_arena(uint64_t bytes, int flags, int fd, Mapping* memory) {
  void* wanted = reinterpret_cast<void*>(kArenaAddress);
  void* data = ::mmap(wanted, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED_NOREPLACE | flags, fd, 0);
  if (data == MAP_FAILED) return system_error("map the arena at its address", errno);
  *memory = Mapping::adopt(data, bytes);
  // Kernels before 4.17 treat the flag as a hint.
  if (data != wanted) return system_error("map the arena at its address", EEXIST);
  return {};
}

Error map_empty_arena(uint64_t bytes, Mapping* memory) {
  if (Error error = check_size(bytes)) return error;
  if (Error error = map_arena(bytes, MAP_ANONYMOUS, -1, memory)) return error;
  // A huge page would be installed by one fault and hide the others. EINVAL: not supported.
  if (::madvise(memory->data(), bytes, MADV_NOHUGEPAGE) != 0 && errno != EINVAL) {
    return system_error("forbid huge pages", errno);
  }
  return {};
}

bool is_zero_page(const uint8_t* page) {
  const auto* words = reinterpret_cast<const uint64_t*>(page);
  return std::all_of(words, words + kPageBytes / sizeof *words, [](uint64_t w) { return w == 0; });
}

Error write_all(int fd, const uint8_t* data, size_t bytes, off_t offset) {
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd, data, bytes, offset);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return system_error("write the memory file", errno);
    data += written;
    bytes -= static_cast<size_t>(written);
    offset += written;
  }
  return {};
}

Error write_sparse(int fd, const Mapping& memory, uint64_t* data_pages) {
  if (::ftruncate(fd, static_cast<off_t>(memory.size())) != 0) {
    return system_error("size the memory file", errno);
  }
  size_t start = 0;
  while (start < memory.size()) {
    if (is_zero_page(memory.data() + start)) {
      start += kPageBytes;
      continue;
    }
    size_t end = start + kPageBytes;
    while (end < memory.size() && !is_zero_page(memory.data() + end)) end += kPageBytes;
    if (Error error =
            write_all(fd, memory.data() + start, end - start, static_cast<off_t>(start))) {
      return error;
    }
    *data_pages += (end - start) / kPageBytes;
    start = end;
  }
  return {};
}

Error write_snapshot(const std::string& path, const Mapping& memory, uint64_t* data_pages) {
  const std::string temporary = path + ".tmp" + std::to_string(::getpid());
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd) return system_error("create " + temporary, errno);
  Error error = write_sparse(fd.get(), memory, data_pages);
  if (!error && ::rename(temporary.c_str(), path.c_str()) != 0) {
    error = system_error("rename " + temporary + " to " + path, errno);
  }
  if (error) ::unlink(temporary.c_str());
  return error;
}

}  // namespace

Error build_snapshot(const std::string& path, uint64_t memory_bytes, uint64_t seed,
                     SnapshotReport* report) {
  Mapping memory;
  if (Error error = map_empty_arena(memory_bytes, &memory)) return error;
  if (!build_guest(memory_bytes, seed)) return {"the guest does not fit its memory", -ENOMEM};
  *report = {memory_bytes, 0, Guest::at_arena()->store.size()};
  return write_snapshot(path, memory, &report->data_pages);
}

Error Arena::restore_file(const std::string& memory_file) {
  *this = Arena();
  UniqueFd fd(::open(memory_file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + memory_file, errno);
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("stat " + memory_file, errno);
  const auto bytes = static_cast<uint64_t>(status.st_size);
  if (Error error = check_size(bytes)) return error;
  return map_arena(bytes, 0, fd.get(), &memory_);
}

Error Arena::restore_uffd(const std::string& socket_path, uint64_t memory_bytes) {
  *this = Arena();
  Arena next;
  if (Error error = map_empty_arena(memory_bytes, &next.memory_)) return error;
  if (Error error = Userfault::open(&next.userfault_)) return error;
  if (Error error = next.userfault_.register_missing(next.memory_.data(), memory_bytes)) {
    return error;
  }
  HandshakeReport report;
  const HandshakeRegion region{kArenaAddress, memory_bytes, 0, kPageBytes};
  if (Error error = send_handshake(socket_path, {region}, next.userfault_.fd.get(), {}, &report)) {
    return error;
  }
  if (report.send_error != 0) return system_error("send the handshake", -report.send_error);
  next.socket_ = std::move(report.socket);
  *this = std::move(next);
  return {};
}

Error Arena::check() const {
  if (!memory_) return {"no guest is restored: restore-file or restore-uffd comes first"};
  const Guest* guest = Guest::at_arena();
  if (guest->magic != Guest::kMagic || guest->memory_bytes != memory_.size()) {
    return {"this memory is not a snapshot of the embedded guest"};
  }
  return {};
}

}  // namespace reap::guest
