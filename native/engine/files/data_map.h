// Where a file has data and where it has holes, found once when the file is opened: SEEK_DATA may
// wait for a server (FUSE, NFS 4.2), so no fault and no fetch asks.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace reap {

class DataMap {
 public:
  // A file that is data from its begin to its end.
  explicit DataMap(uint64_t bytes) : bytes_(bytes), data_{{0, bytes}} {}
  // Asks the kernel. Of a file with very many holes the rest counts as data, which is slower to
  // read and never wrong.
  static DataMap of(int fd, uint64_t bytes);

  // End of the hole that covers `offset`, or `offset` itself if there is data.
  uint64_t hole_end(uint64_t offset) const;
  // End of the data that covers `offset`, at most the file's size.
  uint64_t data_end(uint64_t offset) const;

 private:
  struct Extent {
    uint64_t begin;
    uint64_t end;
  };
  // The first extent that ends after `offset`.
  std::vector<Extent>::const_iterator next(uint64_t offset) const;

  uint64_t bytes_;
  std::vector<Extent> data_;  // in order
};

// Maps of the files that were opened last, by their states, shared by all restores.
std::shared_ptr<const DataMap> shared_data_map(int fd, const std::array<uint64_t, 5>& state);

}  // namespace reap
