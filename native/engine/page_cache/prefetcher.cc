#include "page_cache/prefetcher.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "base/page.h"
#include "base/test_hooks.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;

// Extents that one job requests before the next job has its turn: a few milliseconds of disk time.
constexpr size_t kExtentsInTurn = 256;
// Devices come and go (each mount of overlayfs, btrfs or FUSE has a separate number), and each
// has a prefetcher.
constexpr auto kIdle = std::chrono::seconds(1);

uint64_t since_us(Clock::time_point start) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start).count());
}

constexpr size_t kPagesInWindow = 256;
// Pages per request, the granularity of counting and cancelling: 1 MiB.
constexpr uint32_t kMaxPages = 256;

void add(std::vector<FileExtent>* extents, FileExtent extent) {
  while (extent.page_count > kMaxPages) {
    extents->push_back({extent.file, extent.first_page, kMaxPages});
    extent.first_page += kMaxPages;
    extent.page_count -= kMaxPages;
  }
  extents->push_back(extent);
}

}  // namespace

PageCachePlan page_cache_plan_of(const WorkingSet& set) {
  PageCachePlan plan;
  plan.touches = set.touches;
  plan.pages_per_touch = static_cast<uint32_t>(set.header.page_size / kPage);
  auto touch = set.disk_touches.begin();
  for (uint32_t disk = 0; disk < set.disks.size(); ++disk) {
    PageCachePlan::DiskExtent run{disk, 0, 0, 0};
    for (uint32_t left = set.disks[disk].touches; left > 0; --left, ++touch) {
      if (run.first_page + run.page_count != touch->page || run.time_us != touch->time_us) {
        if (run.page_count > 0) plan.disk_extents.push_back(run);
        run = {disk, touch->page, 0, touch->time_us};
      }
      ++run.page_count;
    }
    if (run.page_count > 0) plan.disk_extents.push_back(run);
  }
  std::stable_sort(
      plan.disk_extents.begin(), plan.disk_extents.end(),
      [](const PageCachePlan::DiskExtent& one, const PageCachePlan::DiskExtent& other) {
        return one.time_us < other.time_us;
      });
  return plan;
}

std::vector<FileExtent> PageCachePlan::extents() const {
  std::vector<FileExtent> found;
  std::vector<uint32_t> window;
  const size_t touches_in_window = std::max<size_t>(1, kPagesInWindow / pages_per_touch);
  size_t disk = 0;
  for (size_t i = 0; i < touches.size();) {
    const size_t end = std::min(touches.size(), i + touches_in_window);
    // Times of a set merged from several runs need not rise: an extent that is due is not delayed
    // by a later touch.
    for (; disk < disk_extents.size() && disk_extents[disk].time_us <= touches[i].time_us; ++disk) {
      const DiskExtent& extent = disk_extents[disk];
      add(&found, {extent.disk + 1, extent.first_page, extent.page_count});
    }
    window.clear();
    for (; i < end; ++i) window.push_back(touches[i].page);
    std::sort(window.begin(), window.end());
    FileExtent run{0, window.front(), 0};
    for (const uint32_t page : window) {
      if (run.first_page + run.page_count != page) {
        add(&found, run);
        run = {0, page, 0};
      }
      run.page_count += pages_per_touch;
    }
    add(&found, run);
  }
  for (; disk < disk_extents.size(); ++disk) {
    const DiskExtent& extent = disk_extents[disk];
    add(&found, {extent.disk + 1, extent.first_page, extent.page_count});
  }
  return found;
}

struct PageCachePrefetcher::Job {
  uint64_t id = 0;
  std::vector<std::string> paths;
  std::vector<CachedFile> files;
  PageCachePlan plan;
  std::vector<FileExtent> extents;
  uint64_t budget_pages = 0;
  Done done;
  std::atomic<bool> cancelled{false};

  size_t next = 0;  // next extent to request
  // Requested extents, and those counted as cached: they may still be being read.
  std::vector<FileExtent> awaited;
  size_t waited = 0;
  PageCacheReport report;
};

PageCachePrefetcher::~PageCachePrefetcher() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    for (const auto& job : jobs_) job->cancelled = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t PageCachePrefetcher::start(std::vector<std::string> paths, PageCachePlan plan,
                                    uint64_t budget_bytes, Done done, Failure* failure) {
  auto job = std::make_shared<Job>();
  job->paths = std::move(paths);
  job->plan = std::move(plan);
  job->budget_pages = budget_bytes / kPage;
  job->done = std::move(done);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!running_) {
    if (const int error = thread_.start([this] { work(); })) {
      if (failure) *failure = no_thread(error);
      return 0;
    }
    running_ = true;
  }
  job->id = ++last_id_;
  jobs_.push_back(job);
  changed_.notify_all();
  return job->id;
}

void PageCachePrefetcher::cancel(uint64_t id) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& job : jobs_) {
    if (job->id == id) job->cancelled = true;
  }
}

// Not condition_variable::wait(): libstdc++ 12 made it a symbol that older versions lack.
bool PageCachePrefetcher::end(uint64_t id, std::chrono::milliseconds limit) {
  cancel(id);
  const auto is_there = [this, id] {
    return std::any_of(jobs_.begin(), jobs_.end(), [id](auto& job) { return job->id == id; });
  };
  const auto until = std::chrono::system_clock::now() + limit;
  std::unique_lock<std::mutex> lock(mutex_);
  while (is_there() && changed_.wait_until(lock, until) == std::cv_status::no_timeout) {
  }
  return !is_there();
}

void PageCachePrefetcher::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto until = std::chrono::system_clock::now() + kIdle;
    while (!stopping_ && jobs_.empty() &&
           changed_.wait_until(lock, until) == std::cv_status::no_timeout) {
    }
    if (jobs_.empty()) {
      running_ = false;
      return;
    }
    // It stays in the list, where cancel() finds it.
    std::shared_ptr<Job> job = jobs_.front();
    lock.unlock();
    REAP_HOOK(before_page_cache_turn);
    const bool has_more = advance(*job);
    lock.lock();
    if (has_more) {
      jobs_.remove(job);
      jobs_.push_back(job);
      continue;
    }
    lock.unlock();
    finish(*job);
    lock.lock();
    jobs_.remove(job);
    changed_.notify_all();
    // Destructors of what `done` captured may call this object.
    lock.unlock();
    job.reset();
    lock.lock();
  }
}

// A failure of the memory file ends the job; a disk image is skipped.
bool PageCachePrefetcher::fail(Job& job, uint32_t file, const Failure& failure) {
  if (!job.report.failure || file == 0) {
    job.report.failure = failure;
    job.report.file = file;
  }
  job.files[file] = CachedFile();
  return file == 0;
}

bool PageCachePrefetcher::advance(Job& job) {
  PageCacheReport& report = job.report;
  if (job.files.empty()) {
    job.files.resize(job.paths.size());
    for (uint32_t i = 0; i < job.files.size(); ++i) {
      if (job.paths[i].empty()) continue;  // skipped: treated as a file without pages
      CachedFile& file = job.files[i];
      const int error = file.open(job.paths[i]);
      if (error == 0) continue;
      const char* syscall = file.failed_syscall();
      if (fail(job, i, failed_call(ErrorCode::source_read, error, syscall))) return false;
    }
    job.extents = job.plan.extents();
    job.plan = {};
  }
  for (size_t turn = 0; job.next < job.extents.size() && turn < kExtentsInTurn; ++turn) {
    if (job.cancelled) {
      report.cancelled = true;
      return false;
    }
    const FileExtent& extent = job.extents[job.next++];
    if (extent.file >= job.files.size()) continue;  // an extent of a disk that was not given
    const CachedFile& file = job.files[extent.file];
    if (extent.first_page >= file.pages()) continue;
    const uint64_t pages = std::min<uint64_t>(extent.page_count, file.pages() - extent.first_page);
    // Checking each page of a hidden file costs more than requesting all of them.
    const uint64_t there = file.is_visible() ? file.count(extent.first_page, pages) : 0;
    report.pages += pages;
    report.resident += std::min(there, pages);
    if (there >= pages) {
      job.awaited.push_back(extent);
      continue;
    }
    if (report.fetched_pages + pages - there > job.budget_pages) {
      report.pages -= pages;
      report.resident -= there;
      report.in_budget = false;
      job.next = job.extents.size();
      break;
    }
    file.will_need(extent.first_page, pages);
    report.fetched_pages += pages - there;
    ++report.extents;
    job.awaited.push_back(extent);
  }
  if (job.next < job.extents.size()) return true;
  if (report.submitted_us == 0) report.submitted_us = since_us(job.report.started);
  for (size_t turn = 0; job.waited < job.awaited.size() && turn < kExtentsInTurn; ++turn) {
    if (job.cancelled) {
      report.cancelled = true;
      return false;
    }
    const FileExtent& extent = job.awaited[job.waited++];
    const CachedFile& file = job.files[extent.file];
    if (const int error = file.wait_for(extent.first_page, extent.page_count)) {
      const uint64_t offset = extent.first_page * kPage;
      if (fail(job, extent.file, failed_call(ErrorCode::source_read, error, "pread", offset)))
        return false;
    }
  }
  return job.waited < job.awaited.size();
}

void PageCachePrefetcher::finish(Job& job) {
  job.report.completed_us = since_us(job.report.started);
  // The receiver of the report may unmount the file system.
  job.files.clear();
  job.done(job.report);
}

}  // namespace reap
