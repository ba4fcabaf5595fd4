#include "kvm_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "handshake_sender.h"

namespace reap::guest {

namespace {

constexpr int kPrivate = MAP_PRIVATE | MAP_NORESERVE;

// Changes of one page by the trace, of which only the last value of each word counts.
struct Change {
  bool given_back = false;
  std::map<uint64_t, uint64_t> words;  // by offset in the page
};

std::map<uint64_t, Change> changes_of(const KvmTrace& trace, uint64_t page_size) {
  std::map<uint64_t, Change> changes;
  for (const TraceEntry& entry : trace.entries) {
    const uint64_t first = entry.offset() / page_size;
    if (entry.has(TraceEntry::kGiveBack)) {
      for (uint64_t i = 0; i < entry.word / page_size; i++) changes[first + i] = {true, {}};
      continue;
    }
    Change& change = changes[first];
    if (entry.has(TraceEntry::kWrite)) change.words[entry.offset() % page_size] = ~entry.word;
  }
  return changes;
}

Error read_page(int fd, const std::string& path, uint64_t offset, std::vector<uint8_t>* page) {
  for (size_t done = 0; done < page->size();) {
    const ssize_t got =
        ::pread(fd, page->data() + done, page->size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return system_error("read " + path, errno);
    if (got == 0) return {path + " ends early", -EINVAL};
    done += static_cast<size_t>(got);
  }
  return {};
}

}  // namespace

Error KvmMemory::map_file(const std::string& memory_file, uint64_t bytes, KvmMemory* memory) {
  const UniqueFd fd(::open(memory_file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + memory_file, errno);
  struct stat status;
  if (::fstat(fd.get(), &status) != 0) return system_error("stat " + memory_file, errno);
  if (static_cast<uint64_t>(status.st_size) != bytes) {
    return {memory_file + " has " + std::to_string(status.st_size) + " bytes, the trace is for " +
                std::to_string(bytes),
            -EINVAL};
  }
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kPrivate, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("map " + memory_file, errno);
  KvmMemory mapped;
  mapped.file_ = Mapping::adopt(data, bytes);
  mapped.data_ = mapped.file_.data();
  *memory = std::move(mapped);
  return {};
}

Error KvmMemory::map_userfault(uint64_t bytes, uint64_t page_size, bool user_mode_only,
                               KvmMemory* memory) {
  KvmMemory mapped;
  RegionLayout layout;
  layout.page_size = page_size;
  layout.sizes = {bytes};
  if (Error error = VmmMemory::map(layout, &mapped.regions_)) return error;
  mapped.data_ = mapped.regions_.page(0);
  mapped.page_size_ = page_size;
  if (Error error = Userfault::open(&mapped.userfault_, user_mode_only)) return error;
  if (Error error = mapped.userfault_.register_missing(mapped.data_, bytes)) return error;
  *memory = std::move(mapped);
  return {};
}

Error KvmMemory::connect(const std::string& socket_path) {
  HandshakeReport report;
  if (Error error =
          send_handshake(socket_path, regions_.regions(), userfault_.fd.get(), {}, &report)) {
    return error;
  }
  if (report.send_error != 0) return system_error("send the handshake", -report.send_error);
  socket_ = std::move(report.socket);
  return {};
}

Error KvmMemory::give_back(uint64_t offset, uint64_t bytes) const {
  uint8_t* memory = data_ + offset;
  // MADV_DONTNEED would restore the bytes of the file.
  if (file_) {
    void* zeros =
        ::mmap(memory, bytes, PROT_READ | PROT_WRITE, kPrivate | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros != MAP_FAILED) return {};
  } else if (::madvise(memory, bytes, MADV_DONTNEED) == 0) {
    return {};
  }
  return system_error("give memory back", errno);
}

Error KvmMemory::compare(const std::string& memory_file, const KvmTrace& trace,
                         Difference* difference) const {
  const UniqueFd fd(::open(memory_file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return system_error("open " + memory_file, errno);
  std::vector<uint8_t> wanted(page_size_);
  for (const auto& [page, change] : changes_of(trace, page_size_)) {
    const uint64_t offset = page * page_size_;
    if (change.given_back) {
      std::memset(wanted.data(), 0, wanted.size());
    } else if (Error error = read_page(fd.get(), memory_file, offset, &wanted)) {
      return error;
    }
    for (const auto& [place, word] : change.words) {
      std::memcpy(wanted.data() + place, &word, sizeof word);
    }
    difference->pages++;
    if (std::memcmp(data_ + offset, wanted.data(), wanted.size()) == 0) continue;
    if (difference->wrong++ == 0) difference->first_wrong = page;
  }
  return {};
}

}  // namespace reap::guest
