#include "uffd/locality.h"

#include <fcntl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/page.h"
#include "base/posix.h"

namespace reap {

namespace {

constexpr uint64_t kDefaultReadAhead = 128 << 10;  // VM_READAHEAD_PAGES
// A longer window would delay the fault too much, whatever the device's setting.
constexpr uint64_t kMaxWindow = 8 << 20;
// Bytes read around without a hit before only single pages are read.
constexpr int64_t kMaxUnused = 256 << 20;

// Of a disk, of a partition's disk, and of a file system without a block device; in KiB.
constexpr const char* kPaths[] = {
    "/sys/dev/block/%u:%u/queue/read_ahead_kb",
    "/sys/dev/block/%u:%u/../queue/read_ahead_kb",
    "/sys/class/bdi/%u:%u/read_ahead_kb",
};

}  // namespace

uint64_t device_read_ahead(dev_t device) {
  for (const char* format : kPaths) {
    char path[96];
    std::snprintf(path, sizeof path, format, major(device), minor(device));
    const UniqueFd file(::open(path, O_RDONLY | O_CLOEXEC));
    if (!file) continue;
    char text[32] = {};
    if (::read(file.get(), text, sizeof text - 1) <= 0) continue;
    return std::strtoull(text, nullptr, 10) << 10;
  }
  return kDefaultReadAhead;
}

ReadAround::Window ReadAround::on_miss(uint64_t offset) {
  uint64_t length = length_.load(std::memory_order_relaxed);
  if (length == 0) {
    // At least a page, and a power of two for alignment.
    const uint64_t limit = std::clamp<uint64_t>(device_read_ahead(device_), kPage, kMaxWindow);
    for (length = kPage; length * 2 <= limit;) length *= 2;
    length_.store(length, std::memory_order_relaxed);
  }
  const uint64_t begin = offset / length * length;
  // In a window that is still being read, or on a file system that does not report hits.
  if (!asked_for_ || !asked_for_.set(begin / kPage)) {
    on_hit();
    return {offset, 0};
  }
  if (unused_.load(std::memory_order_relaxed) >= kMaxUnused) return {offset, 0};
  unused_.fetch_add(static_cast<int64_t>(length), std::memory_order_relaxed);
  return {begin, length};
}

void ReadAround::on_hit() {
  const auto length = static_cast<int64_t>(length_.load(std::memory_order_relaxed));
  if (unused_.load(std::memory_order_relaxed) >= length) {
    unused_.fetch_sub(length, std::memory_order_relaxed);
  }
}

}  // namespace reap
