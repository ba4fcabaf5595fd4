// Brings file pages into the page cache, for VMMs that map or read the files; nothing is copied,
// and there is no fault handler. One thread per disk for all restores: it fills the device's queue,
// and more threads would not make that deeper.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/failure.h"
#include "base/thread.h"
#include "files/cached_file.h"
#include "working_set/working_set.h"

namespace reap {

struct FileExtent {
  uint32_t file;  // index into the paths
  uint32_t first_page;
  uint32_t page_count;
};

// A working set's extents per file: the first file is the memory file, the others are disk images.
struct PageCachePlan {
  struct DiskExtent {
    uint32_t disk;
    uint32_t first_page;
    uint32_t page_count;
    uint32_t time_us;
  };
  std::vector<Touch> touches;  // in first-touch order
  uint32_t pages_per_touch = 1;
  std::vector<DiskExtent> disk_extents;  // by time

  // One order for all files. Each 1 MiB of touches is sorted by address, which is faster on a disk,
  // and merged; the extents of disks are inserted by their times.
  std::vector<FileExtent> extents() const;
};

PageCachePlan page_cache_plan_of(const WorkingSet& set);

struct PageCacheReport {
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  uint64_t pages = 0;          // requested
  uint64_t resident = 0;       // of these, cached before
  uint64_t fetched_pages = 0;  // brought in
  uint64_t extents = 0;        // number of extents with fetched pages
  uint64_t submitted_us = 0;   // from the start to the last request
  uint64_t completed_us = 0;   // from the start until all pages are cached
  bool in_budget = true;       // false: ended early at the budget
  bool cancelled = false;
  uint32_t file = 0;  // index of the file of `failure`
  Failure failure;    // the first one; after that of a disk image the job has continued
};

class PageCachePrefetcher {
 public:
  using Done = std::function<void(const PageCacheReport&)>;

  PageCachePrefetcher() = default;
  // Cancels pending jobs; each Done is called.
  ~PageCachePrefetcher();

  // Fetches the plan's extents in order, until `budget_bytes` have been fetched. `done` is called
  // once, on the prefetcher's thread, which ends when it has had nothing to do for a second.
  // Returns the job's id for cancel() and end(), or 0 with *failure set if there is no thread for
  // it.
  uint64_t start(std::vector<std::string> paths, PageCachePlan plan, uint64_t budget_bytes,
                 Done done, Failure* failure = nullptr);
  void cancel(uint64_t job);
  // Cancels the job, and waits until its `done` has returned; false if it has not after `limit`.
  bool end(uint64_t job, std::chrono::milliseconds limit = std::chrono::hours(1));

 private:
  struct Job;

  void work();
  // Performs a part of the job, so that others get their turn. Returns true if there is more to do.
  static bool advance(Job& job);
  static bool fail(Job& job, uint32_t file, const Failure& failure);
  static void finish(Job& job);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<std::shared_ptr<Job>> jobs_;  // taken from the front, put back at the end
  uint64_t last_id_ = 0;
  bool stopping_ = false;
  bool running_ = false;
  Thread thread_;
};

}  // namespace reap
