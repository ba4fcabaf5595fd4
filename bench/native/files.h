// Memory files, and lists of their pages.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/posix.h"

namespace reap::bench {

constexpr uint64_t kPageBytes = 4096;

// Contiguous bytes of the memory file.
struct Extent {
  uint64_t offset;
  uint64_t bytes;
};

// Maps a file as the published handlers do: privately, without reading it.
Mapping map_file(const std::string& path);

// Pages of a list in ascending order, without duplicates, neighbours merged. All of them lie within
// `memory_bytes`.
std::vector<Extent> read_page_list(const std::string& path, uint64_t memory_bytes);
uint64_t total_bytes(const std::vector<Extent>& extents);

UniqueFd open_file(const std::string& path);
// Opens a file for O_DIRECT, or without if the file system lacks it; `direct` tells which.
UniqueFd open_direct(const std::string& path, bool* direct);
uint64_t file_bytes(int fd, const std::string& path);
// Reads everything or fails: a short read never becomes zeros.
void read_fully(int fd, const std::string& path, uint64_t offset, uint8_t* buffer, uint64_t bytes);

}  // namespace reap::bench
