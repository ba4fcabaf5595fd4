#include "kvm_trace.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/posix.h"

namespace reap::guest {

namespace {

constexpr uint64_t kPageBytes = 4096;

struct Header {
  char magic[8];
  uint64_t memory_bytes;
  uint64_t entries;
};
static_assert(sizeof(Header) == 24, "as in the file");

Error read_all(int fd, const std::string& path, void* data, size_t bytes) {
  auto* next = static_cast<uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t got = ::read(fd, next, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("read " + path, errno);
    if (got == 0) return {path + " ends early", -EINVAL};
    next += got;
    bytes -= static_cast<size_t>(got);
  }
  return {};
}

bool is_valid(const TraceEntry& entry, uint64_t memory_bytes) {
  const uint64_t offset = entry.offset();
  if (offset >= memory_bytes) return false;
  switch (entry.place & TraceEntry::kFlags) {
    case 0:
    case TraceEntry::kWrite:
      return true;
    case TraceEntry::kGiveBack:
      return offset % kPageBytes == 0 && entry.word % kPageBytes == 0 && entry.word > 0 &&
             entry.word <= memory_bytes - offset;
    default:
      return false;
  }
}

}  // namespace

Error KvmTrace::read(const std::string& path, KvmTrace* trace) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + path, errno);
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("stat " + path, errno);

  Header header;
  if (Error error = read_all(fd.get(), path, &header, sizeof header)) return error;
  if (std::memcmp(header.magic, "REAPKVM1", sizeof header.magic) != 0) {
    return {path + " is no trace for the KVM guest", -EINVAL};
  }
  const uint64_t body_bytes = static_cast<uint64_t>(status.st_size) - sizeof header;
  if (header.memory_bytes % kPageBytes != 0 || body_bytes % sizeof(TraceEntry) != 0 ||
      header.entries != body_bytes / sizeof(TraceEntry)) {
    return {path + " contradicts its own header", -EINVAL};
  }

  KvmTrace read;
  read.memory_bytes = header.memory_bytes;
  read.entries.resize(header.entries);
  if (Error error = read_all(fd.get(), path, read.entries.data(), body_bytes)) return error;
  for (const TraceEntry& entry : read.entries) {
    if (is_valid(entry, read.memory_bytes)) continue;
    const auto index = static_cast<uint64_t>(&entry - read.entries.data());
    return {path + ": entry " + std::to_string(index) + " is not valid", -EINVAL};
  }
  *trace = std::move(read);
  return {};
}

}  // namespace reap::guest
