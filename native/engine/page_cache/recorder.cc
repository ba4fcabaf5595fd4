#include "page_cache/recorder.h"

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/test_hooks.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr uint64_t kChunk = 512;  // pages per look: 2 MiB
// A page under I/O, or still mapped by an ending process, stays for a moment.
constexpr int kEvictAttempts = 50;
constexpr milliseconds kEvictPause{10};
// Interval between searches of all processes for mappings, at most a fifth of the time: a search
// takes a millisecond or more per hundred processes. Longer after a mapper was found, since another
// one is unlikely to follow soon.
constexpr milliseconds kSearchInterval{20};
constexpr milliseconds kFoundInterval{100};
constexpr int kSearchShare = 4;

Failure refused(uint32_t file, const char* check, uint64_t got) {
  Failure failure;
  failure.code = ErrorCode::page_cache;
  failure.check = check;
  failure.offset = file;
  failure.got = got;
  return failure;
}

}  // namespace

PageCacheRecorder::~PageCacheRecorder() {
  if (thread_) stop();
}

Failure PageCacheRecorder::start(const std::vector<std::string>& paths, microseconds interval) {
  interval_ = interval;
  files_.resize(paths.size());
  for (uint32_t i = 0; i < files_.size(); ++i) {
    File& file = files_[i];
    if (const int error = file.cached.open(paths[i]))
      return failed_call(ErrorCode::source_read, error, file.cached.failed_syscall(), i);
    if (!file.cached.is_visible()) return refused(i, "hidden", 0);
    file.seen.resize(file.cached.pages());
    file.counts.resize((file.cached.pages() + kChunk - 1) / kChunk);
  }
  for (uint32_t i = 0; i < files_.size(); ++i) {
    if (Failure failure = evict(files_[i], i)) return failure;
  }
  mapped_.resize(files_[0].cached.pages());
  started_ = last_look_ = Clock::now();
  const int error = thread_.start([this] { work(); });
  return error == 0 ? Failure{} : no_thread(error);
}

Failure PageCacheRecorder::evict(File& file, uint32_t index) {
  for (int attempt = 0; attempt < kEvictAttempts; ++attempt) {
    if (attempt > 0) std::this_thread::sleep_for(kEvictPause);
    if (const int error = file.cached.evict())
      return failed_call(ErrorCode::source_read, error, "posix_fadvise", index);
    if (file.cached.count(0, file.cached.pages()) == 0) return {};
  }
  const auto mappings = mappings_of(file.cached.view());
  if (!mappings.empty()) {
    return refused(index, "mapped", static_cast<uint64_t>(mappings.front().pid));
  }
  return refused(index, "stays", file.cached.count(0, file.cached.pages()));
}

PageCacheRecorder::Record PageCacheRecorder::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  // The receiver of the record may unmount the files.
  files_.clear();
  tables_.clear();
  mappings_.clear();
  return std::move(record_);
}

void PageCacheRecorder::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const bool is_last = stopping_;
    lock.unlock();
    const Clock::time_point began = Clock::now();
    look(is_last);
    const auto took = std::chrono::duration_cast<microseconds>(Clock::now() - began);
    lock.lock();
    if (is_last) return;
    // At most a third of a core: the recorded guest needs the rest.
    changed_.wait_for(lock, std::max(interval_, took * 2), [this] { return stopping_; });
  }
}

void PageCacheRecorder::look(bool is_last) {
  const Clock::time_point now = Clock::now();
  const auto elapsed = [now](Clock::time_point from) {
    return static_cast<uint64_t>(std::chrono::duration_cast<microseconds>(now - from).count());
  };
  ++record_.looks;
  record_.longest_gap_us = std::max(record_.longest_gap_us, elapsed(last_look_));
  last_look_ = now;
  const auto time_us = static_cast<uint32_t>(std::min<uint64_t>(elapsed(started_), UINT32_MAX));
  for (uint32_t i = 0; i < files_.size(); ++i) look_at_cache(i, time_us, is_last);
  if (now >= next_search_ || is_last) {
    const Clock::time_point began = Clock::now();
    mappings_ = mappings_of(files_[0].cached.view());
    // A page table belongs to one program. A process that has called exec() since, as a VMM does
    // after fork(), has a new one.
    tables_.clear();
    const Clock::time_point ended = Clock::now();
    const milliseconds pause = record_.mapper == 0 ? kSearchInterval : kFoundInterval;
    next_search_ = ended + std::max<Clock::duration>(pause, (ended - began) * kSearchShare);
    REAP_HOOK(before_page_tables);
  }
  look_at_mappings(time_us);
  REAP_HOOK(after_look);
}

void PageCacheRecorder::look_at_cache(uint32_t index, uint32_t time_us, bool is_last) {
  File& file = files_[index];
  uint8_t is_cached[kChunk];
  for (uint64_t chunk = 0; chunk < file.counts.size(); ++chunk) {
    const uint64_t first = chunk * kChunk;
    const uint64_t pages = std::min(kChunk, file.cached.pages() - first);
    // One call shows whether anything is new, which is rare. A page that replaced another one is
    // left to the last look.
    const uint64_t count = file.cached.count(first, pages);
    if (is_last ? count == 0 : count == file.counts[chunk]) continue;
    if (file.cached.map(first, pages, is_cached) != 0) continue;
    // Not `count`: it includes pages that are still being read, which map() reports only afterwards
    // (page_cache_recorder_finds_a_page_whose_read_ends_after_a_look).
    file.counts[chunk] = 0;
    for (uint64_t i = 0; i < pages; ++i) {
      if (!(is_cached[i] & 1)) continue;
      ++file.counts[chunk];
      if (file.seen[first + i]) continue;
      file.seen[first + i] = true;
      record_.cached.push_back({index, static_cast<uint32_t>(first + i), time_us});
    }
  }
}

void PageCacheRecorder::look_at_mappings(uint32_t time_us) {
  for (const FileMapping& mapping : mappings_) {
    auto& table = tables_[mapping.pid];
    if (!table) {
      auto opened = std::make_unique<PageTable>();
      if (const int error = opened->open(mapping.pid)) {
        // Other errors mean that the process has ended.
        if (error == -EACCES || error == -EPERM) record_.mapper_error = error;
        continue;
      }
      table = std::move(opened);
    }
    table->each(mapping, [&](uint64_t page) {
      if (page >= mapped_.size() || mapped_[page]) return;
      mapped_[page] = true;
      record_.mapper = mapping.pid;
      record_.mapped.push_back({0, static_cast<uint32_t>(page), time_us});
    });
  }
}

}  // namespace reap
