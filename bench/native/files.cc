#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "report.h"

namespace reap::bench {

UniqueFd open_file(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) fail("open " + path, errno);
  return fd;
}

Mapping map_file(const std::string& path) {
  const UniqueFd fd = open_file(path);
  const uint64_t bytes = file_bytes(fd.get(), path);
  void* data = ::mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) fail("map " + path, errno);
  return Mapping::adopt(data, bytes);
}

std::vector<Extent> read_page_list(const std::string& path, uint64_t memory_bytes) {
  const UniqueFd fd = open_file(path);
  std::vector<uint8_t> bytes(file_bytes(fd.get(), path));
  if (bytes.size() % 4 != 0) fail(path + " is no list of 32-bit numbers");
  read_fully(fd.get(), path, 0, bytes.data(), bytes.size());
  std::vector<uint32_t> pages;
  for (size_t i = 0; i < bytes.size(); i += 4) {
    pages.push_back(bytes[i] | bytes[i + 1] << 8 | bytes[i + 2] << 16 |
                    static_cast<uint32_t>(bytes[i + 3]) << 24);
  }
  std::sort(pages.begin(), pages.end());
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  if (pages.back() >= memory_bytes / kPageBytes) {
    fail(path + ": page " + std::to_string(pages.back()) + " is not in the memory file");
  }
  std::vector<Extent> extents;
  for (const uint64_t page : pages) {
    const uint64_t offset = page * kPageBytes;
    if (extents.empty() || extents.back().offset + extents.back().bytes != offset) {
      extents.push_back({offset, 0});
    }
    extents.back().bytes += kPageBytes;
  }
  return extents;
}

uint64_t total_bytes(const std::vector<Extent>& extents) {
  uint64_t bytes = 0;
  for (const Extent& extent : extents) bytes += extent.bytes;
  return bytes;
}

UniqueFd open_direct(const std::string& path, bool* direct) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT));
  *direct = static_cast<bool>(fd);
  return *direct ? std::move(fd) : open_file(path);
}

uint64_t file_bytes(int fd, const std::string& path) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) fail("stat " + path, errno);
  if (status.st_size == 0) fail(path + " is empty");
  return static_cast<uint64_t>(status.st_size);
}

void read_fully(int fd, const std::string& path, uint64_t offset, uint8_t* buffer, uint64_t bytes) {
  const int64_t done = read_whole(fd, offset, buffer, bytes);
  if (done < 0) fail("read " + path, static_cast<int>(-done));
  if (static_cast<uint64_t>(done) < bytes)
    fail(path + " ends before " + std::to_string(offset + bytes));
}

}  // namespace reap::bench
