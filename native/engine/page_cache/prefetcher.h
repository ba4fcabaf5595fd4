// Brings pages of files into the page cache, for VMMs that map or read them: nothing is copied, and
// no handler is there. One thread of a disk for however many restores: it fills the device's queue,
// and more threads make that no deeper.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/failure.h"
#include "files/cached_file.h"
#include "working_set/working_set.h"

namespace reap {

struct FileExtent {
  uint32_t file;  // index into the paths
  uint32_t first_page;
  uint32_t page_count;
};

// What a working set says of its files: the first is the memory file, the others disk images.
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

  // One order for all files. 1 MiB of touches at a time is sorted by address, which a disk likes
  // better, and merged; the extents of disks come between by their times.
  std::vector<FileExtent> extents() const;
};

PageCachePlan page_cache_plan_of(const WorkingSet& set);

struct PageCacheReport {
  uint64_t pages = 0;          // that were asked for
  uint64_t resident = 0;       // of these, there before
  uint64_t fetched_pages = 0;  // brought in
  uint64_t extents = 0;        // in which those lie
  uint64_t asked_us = 0;       // until all was asked for, from the start
  uint64_t there_us = 0;       // until all was there
  bool in_budget = true;       // false: ended early
  bool cancelled = false;
  uint32_t file = 0;  // of the failure
  Failure failure;    // the first; the job has gone on where it is a disk image's
};

class PageCachePrefetcher {
 public:
  using Done = std::function<void(const PageCacheReport&)>;

  PageCachePrefetcher() = default;
  // Cancels what is not done; each Done is called.
  ~PageCachePrefetcher();

  // Brings the plan's extents in, in their order, until `budget_bytes` were fetched. `done` is
  // called once, on a thread of its own. Returns what cancel() takes.
  uint64_t start(std::vector<std::string> paths, PageCachePlan plan, uint64_t budget_bytes,
                 Done done);
  void cancel(uint64_t job);
  // Cancels it, and waits until its `done` has returned.
  void end(uint64_t job);

 private:
  struct Job;

  template <typename Until>
  void wait(std::unique_lock<std::mutex>& lock, Until until);
  void work();
  // A part of the job, so that others get their turn. Whether there is more to do.
  static bool advance(Job& job);
  static bool fail(Job& job, uint32_t file, const Failure& failure);
  static void finish(Job& job);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::list<std::shared_ptr<Job>> jobs_;  // taken from the front, put back at the end
  uint64_t last_id_ = 0;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace reap
