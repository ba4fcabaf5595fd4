#include "files/data_map.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <list>
#include <mutex>
#include <utility>

namespace reap {

namespace {

constexpr size_t kMaxExtents = 1 << 16;  // 1 MiB, and about 50 ms to find
constexpr size_t kMaxMaps = 16;

}  // namespace

DataMap DataMap::of(int fd, uint64_t bytes) {
  DataMap map(bytes);
  map.data_.clear();
  for (uint64_t at = 0; at < bytes;) {
    const off_t data = ::lseek(fd, static_cast<off_t>(at), SEEK_DATA);
    // ENXIO: no data up to the end of the file.
    if (data < 0 && errno == ENXIO) break;
    const off_t hole =
        data < 0 || map.data_.size() == kMaxExtents ? -1 : ::lseek(fd, data, SEEK_HOLE);
    const uint64_t begin = data < 0 ? at : static_cast<uint64_t>(data);
    at = hole <= data ? bytes : std::min(bytes, static_cast<uint64_t>(hole));
    if (begin < at) map.data_.push_back({begin, at});
  }
  return map;
}

std::vector<DataMap::Extent>::const_iterator DataMap::next(uint64_t offset) const {
  return std::upper_bound(data_.begin(), data_.end(), offset,
                          [](uint64_t at, const Extent& extent) { return at < extent.end; });
}

uint64_t DataMap::hole_end(uint64_t offset) const {
  const auto extent = next(offset);
  return std::max(offset, extent == data_.end() ? bytes_ : extent->begin);
}

uint64_t DataMap::data_end(uint64_t offset) const {
  const auto extent = next(offset);
  return extent == data_.end() || extent->begin > offset ? bytes_ : extent->end;
}

std::shared_ptr<const DataMap> shared_data_map(int fd, const std::array<uint64_t, 5>& state) {
  using Known = std::pair<std::array<uint64_t, 5>, std::shared_ptr<const DataMap>>;
  static std::mutex mutex;
  static auto* const maps = new std::list<Known>;  // the last used first
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto known = std::find_if(maps->begin(), maps->end(),
                                    [&state](const Known& one) { return one.first == state; });
    if (known != maps->end()) {
      maps->splice(maps->begin(), *maps, known);
      return maps->front().second;
    }
  }
  // Without the lock: the server may hang.
  auto map = std::make_shared<const DataMap>(DataMap::of(fd, state[2]));
  const std::lock_guard<std::mutex> lock(mutex);
  maps->emplace_front(state, map);
  if (maps->size() > kMaxMaps) maps->pop_back();
  return map;
}

}  // namespace reap
