#include "page_cache/mapped_pages.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <memory>

namespace reap {

namespace {

std::string read_text(const std::string& path) {
  std::string text;
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return text;
  char part[16384];
  for (;;) {
    const ssize_t got = ::read(fd.get(), part, sizeof part);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(part, static_cast<size_t>(got));
  }
}

// A line of /proc/PID/maps. `file` has device and inode as shown there: on some file systems
// (overlayfs, btrfs) stat(2) returns others.
struct MapLine {
  uint64_t start, end, offset;
  std::string file;
};

template <typename Found>
void each_line(const std::string& text, Found&& found) {
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    uint64_t start = 0, stop = 0, offset = 0;
    char device[32] = "", inode[32] = "";
    if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %*4s %" SCNx64 " %31s %31s", &start,
                    &stop, &offset, device, inode) == 5) {
      found(MapLine{start, stop, offset, std::string(device) + ' ' + inode});
    }
  }
}

}  // namespace

std::vector<FileMapping> mappings_of(const void* view) {
  std::vector<FileMapping> found;
  std::string file;
  const auto place = reinterpret_cast<uint64_t>(view);
  each_line(read_text("/proc/self/maps"), [&](const MapLine& line) {
    if (line.start <= place && place < line.end) file = line.file;
  });
  if (file.empty()) return found;
  const std::unique_ptr<DIR, int (*)(DIR*)> processes(::opendir("/proc"), ::closedir);
  if (!processes) return found;
  while (const dirent* entry = ::readdir(processes.get())) {
    const auto pid = static_cast<pid_t>(std::atol(entry->d_name));
    if (pid <= 0 || pid == ::getpid()) continue;
    each_line(read_text(std::string("/proc/") + entry->d_name + "/maps"), [&](const MapLine& line) {
      if (line.file == file) {
        found.push_back({pid, line.start, line.end - line.start, line.offset});
      }
    });
  }
  return found;
}

int PageTable::open(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/pagemap";
  fd_.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  return fd_ ? 0 : -errno;
}

int PageTable::read(uint64_t first_page, uint64_t pages, uint64_t* entries) const {
  const size_t bytes = std::min(pages, kEntries) * sizeof *entries;
  for (;;) {
    const ssize_t got =
        ::pread(fd_.get(), entries, bytes, static_cast<off_t>(first_page * sizeof *entries));
    if (got >= 0) return static_cast<int>(got / static_cast<ssize_t>(sizeof *entries));
    if (errno != EINTR) return -errno;
  }
}

}  // namespace reap
