// Files whose pages are cached or not, and a process that maps one of them.
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
  // Drops unmapped pages; returns whether all of them are gone.
  bool evict() const;
  // Whole ranges of 2 MiB: the page cache may have folios of up to that size.
  void evict(uint64_t first_page, uint64_t pages) const;
  // Reads only these pages, without read-ahead.
  void read(const std::vector<uint32_t>& pages) const;
  // Pages that are cached and completely read.
  std::vector<uint32_t> cached() const;

 private:
  const uint64_t bytes_;
  const TempDir directory_;
  const std::string path_;
};

// A child that maps a file privately without read-ahead, and touches pages on command.
class Mapper {
 public:
  explicit Mapper(const std::string& path);
  ~Mapper() { end(); }
  Mapper(const Mapper&) = delete;
  Mapper& operator=(const Mapper&) = delete;

  pid_t pid() const { return pid_; }
  // Returns when the page has been touched.
  bool touch(uint32_t page) const;
  // Executes the program in that file, which echoes its input; returns when it has echoed.
  bool become(const std::string& path) const;
  void end();

 private:
  static void run(int parent, const std::string& path);
  bool has_answered() const;

  pid_t pid_ = -1;
  reap::UniqueFd child_;
};

// Pages from `first` on, in steps of `step`.
std::vector<uint32_t> every(uint32_t step, uint32_t first, uint32_t end);

}  // namespace fixture
