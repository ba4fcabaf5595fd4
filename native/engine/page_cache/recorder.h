// Records which pages of files enter the page cache, and the page table of a process that maps the
// first file. One thread polls; pages that appear between two looks have no order.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/failure.h"
#include "base/thread.h"
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
    std::vector<Touch> cached;  // in time order; within a look by file and page
    std::vector<Touch> mapped;  // pages of file 0 that a process which maps it has touched
    pid_t mapper = 0;  // pid of such a process: the last one with a page that no other had touched
    int mapper_error = 0;  // negative errno if its page table could not be read
    uint64_t looks = 0;
    uint64_t longest_gap_us = 0;  // between two looks
  };

  ~PageCacheRecorder();

  // Evicts the files and starts to poll. `failure.offset` is the index of the file concerned;
  // `check` is `hidden`, `mapped` (with the pid in `got`), or `stays` (`got` pages).
  Failure start(const std::vector<std::string>& paths, std::chrono::microseconds interval);
  // Looks once more, and stops. May be called once.
  Record stop();

 private:
  struct File {
    CachedFile cached;
    std::vector<bool> seen;
    std::vector<uint64_t> counts;  // pages that the last look found, by chunk
  };

  Failure evict(File& file, uint32_t index);
  void work();
  void look(bool is_last);
  void look_at_cache(uint32_t index, uint32_t time_us, bool is_last);
  void look_at_mappings(uint32_t time_us);

  std::vector<File> files_;
  std::vector<bool> mapped_;
  std::map<pid_t, std::unique_ptr<PageTable>> tables_;  // of `mappings_`
  std::vector<FileMapping> mappings_;
  std::chrono::steady_clock::time_point started_, last_look_, next_search_;
  std::chrono::microseconds interval_{};
  Record record_;

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  Thread thread_;
};

}  // namespace reap
