// Watches pages of files come into the page cache, and into the page table of a process that maps
// the first file. One thread looks again and again; what is new between two looks has no order.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/failure.h"
#include "files/cached_file.h"
#include "page_cache/mapped_pages.h"

namespace reap {

class PageCacheRecorder {
 public:
  struct Touch {
    uint32_t file;
    uint32_t page;
    uint32_t time_us;  // since start() returned, rounded up to the look that found it
  };
  struct Record {
    std::vector<Touch> cached;  // in the order of time, by file and page in each look
    std::vector<Touch> mapped;  // of file 0: what a process that maps it has touched
    pid_t mapper = 0;           // such a process, the last with a page that no other had touched
    int mapper_error = 0;       // a negative errno: its page table may not be read
    uint64_t looks = 0;
    uint64_t longest_gap_us = 0;  // between two looks
  };

  ~PageCacheRecorder();

  // Evicts the files and starts to look. `failure.offset` is the index of the file that it is
  // about; `check` is `hidden`, `mapped` (with the pid in `got`), or `stays` (`got` pages).
  Failure start(const std::vector<std::string>& paths, std::chrono::microseconds interval);
  // Looks once more, and ends. Only once.
  Record stop();

 private:
  struct File {
    CachedFile cached;
    std::vector<bool> seen;
    std::vector<uint64_t> counts;  // pages that the last look mapped out, by chunk
  };

  Failure evict(File& file, uint32_t index);
  void work();
  void look(bool is_last);
  void look_at_cache(uint32_t index, uint32_t time_us, bool is_last);
  void look_at_mappings(uint32_t time_us);

  std::vector<File> files_;
  std::vector<bool> mapped_;
  std::map<pid_t, std::unique_ptr<PageTable>> tables_;  // of the mappings below
  std::vector<FileMapping> mappings_;
  std::chrono::steady_clock::time_point started_, last_look_, next_search_;
  std::chrono::microseconds interval_{};
  Record record_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace reap
