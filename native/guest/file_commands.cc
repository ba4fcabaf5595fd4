// Commands for a file's pages in the page cache: a benchmark makes them cold and verifies it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>

#include "command.h"
#include "vmm.h"

namespace reap::guest {

namespace {

constexpr size_t kCachePageBytes = 4096;
constexpr size_t kBlockBytes = 64 * 1024;

Error open_file(const std::string& path, UniqueFd* fd, size_t* bytes) {
  *fd = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!*fd) return system_error("open " + path, errno);
  struct stat status;
  if (::fstat(fd->get(), &status) != 0) return system_error("stat " + path, errno);
  *bytes = static_cast<size_t>(status.st_size);
  return {};
}

Error count_resident(const UniqueFd& fd, size_t bytes, int64_t* resident) {
  *resident = 0;
  if (bytes == 0) return {};
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return system_error("map the file", errno);
  const Mapping mapping = Mapping::adopt(data, bytes);
  std::vector<unsigned char> pages((bytes + kCachePageBytes - 1) / kCachePageBytes);
  if (::mincore(data, bytes, pages.data()) != 0) return system_error("ask for residency", errno);
  *resident =
      std::count_if(pages.begin(), pages.end(), [](unsigned char page) { return page & 1; });
  return {};
}

Answer resident(Vmm&, const Call& call) {
  UniqueFd fd;
  size_t bytes = 0;
  int64_t count = 0;
  if (Error error = open_file(call.text(0), &fd, &bytes)) return error;
  if (Error error = count_resident(fd, bytes, &count)) return error;
  return Answer()
      .number("resident", count)
      .number("pages", static_cast<int64_t>((bytes + kCachePageBytes - 1) / kCachePageBytes));
}

// Reports the number of remaining pages: those that are mapped or under write-back, and all of a
// tmpfs.
Answer evict(Vmm& vmm, const Call& call) {
  UniqueFd fd;
  size_t bytes = 0;
  if (Error error = open_file(call.text(0), &fd, &bytes)) return error;
  // Only clean pages can be dropped.
  if (::fdatasync(fd.get()) != 0) return system_error("write the file back", errno);
  if (const int number = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED); number != 0) {
    return system_error("drop the file from the page cache", number);
  }
  return resident(vmm, call);
}

// Reads the file through, holes too, as a read by anybody else would have.
Answer warm(Vmm& vmm, const Call& call) {
  UniqueFd fd;
  size_t bytes = 0;
  if (Error error = open_file(call.text(0), &fd, &bytes)) return error;
  std::vector<char> buffer(1 << 20);
  for (;;) {
    const ssize_t count = ::read(fd.get(), buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("read the file", errno);
    if (count == 0) return resident(vmm, call);
  }
}

Error read_block(const UniqueFd& fd, size_t offset, std::vector<char>* buffer) {
  size_t done = 0;
  while (done < buffer->size()) {
    const ssize_t count = ::pread(fd.get(), buffer->data() + done, buffer->size() - done,
                                  static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("read the file", errno);
    if (count == 0) return {};
    done += static_cast<size_t>(count);
  }
  return {};
}

// Drops half of the file's blocks, which the seed chooses, and reads the others. A folio that lies
// in both kinds stays as a whole (6.18's ext4 has such after a plain read): the caller sees it in
// the answer, and evicts the file before it asks again.
Answer halve(Vmm& vmm, const Call& call) {
  UniqueFd fd;
  size_t bytes = 0;
  if (Error error = open_file(call.text(0), &fd, &bytes)) return error;
  if (::fdatasync(fd.get()) != 0) return system_error("write the file back", errno);
  // No read-ahead, which would bring dropped blocks back.
  if (const int number = ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_RANDOM); number != 0) {
    return system_error("read the file without read-ahead", number);
  }
  const size_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes;
  std::mt19937_64 random(call.number(1));
  std::vector<char> buffer(kBlockBytes);
  size_t to_drop = blocks / 2;
  for (size_t i = 0; i < blocks; i++) {
    const size_t offset = i * kBlockBytes;
    if (random() % (blocks - i) >= to_drop) {
      if (Error error = read_block(fd, offset, &buffer)) return error;
      continue;
    }
    to_drop--;
    if (const int number =
            ::posix_fadvise(fd.get(), static_cast<off_t>(offset), kBlockBytes, POSIX_FADV_DONTNEED);
        number != 0) {
      return system_error("drop a block from the page cache", number);
    }
  }
  return resident(vmm, call);
}

}  // namespace

const std::vector<Command> kFileCommands = {
    {"evict", "PATH", evict},
    {"halve", "FILE SEED", halve},
    {"warm", "PATH", warm},
    {"resident", "PATH", resident},
};

}  // namespace reap::guest
