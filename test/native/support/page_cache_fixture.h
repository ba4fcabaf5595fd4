// Files whose pages are in the page cache or not, and a process that maps one of them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "guest_fixture.h"

namespace fixture {

constexpr char kNeedsEviction[] = "needs a temporary folder whose files leave the page cache";

class PageFile {
 public:
  // The last page is shorter by `cut_bytes`.
  explicit PageFile(uint64_t pages, const std::string& directory = "", uint64_t cut_bytes = 0);

  const std::string& path() const { return path_; }
  // Drops what no process maps; whether all of it went.
  bool evict() const;
  // Of whole 2 MiB: the page cache may have pages in pieces of up to that size.
  void evict(uint64_t first_page, uint64_t pages) const;
  // Reads these alone, with nothing ahead.
  void read(const std::vector<uint32_t>& pages) const;
  // The pages that are in the page cache and were read to the end.
  std::vector<uint32_t> there() const;

 private:
  const uint64_t bytes_;
  const TempDir directory_;
  const std::string path_;
};

// A child that maps a file, privately and without read-ahead, and touches what it is told to.
class Mapper {
 public:
  explicit Mapper(const std::string& path);
  ~Mapper() { end(); }
  Mapper(const Mapper&) = delete;
  Mapper& operator=(const Mapper&) = delete;

  pid_t pid() const { return pid_; }
  // Each returns when it is done.
  bool touch(uint32_t page) const;
  // It becomes the program in that file, which echoes what it reads, and which has echoed.
  bool become(const std::string& path) const;
  void end();

 private:
  static void run(int parent, const std::string& path);
  bool has_answered() const;

  pid_t pid_ = -1;
  reap::UniqueFd child_;
};

// Pages from `first` on, `step` apart.
std::vector<uint32_t> every(uint32_t step, uint32_t first, uint32_t end);

}  // namespace fixture
