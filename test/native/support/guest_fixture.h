// A guest inside the test's own process: memory registered with a userfaultfd, its memory file, and
// threads that serve it. Replaces Firecracker.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/test_hooks.h"
#include "uffd/fault_handler.h"

namespace fixture {

using reap::Counter;

constexpr uint64_t kSmallPage = 4096;
constexpr uint64_t kHugePage = 2 << 20;

// A directory that is removed with its contents.
class TempDir {
 public:
  explicit TempDir(const std::string& parent = "");
  ~TempDir();
  std::string path(const std::string& name) const { return path_ + "/" + name; }
  const std::string& root() const { return path_; }

 private:
  std::string path_;
};

// Starts all participants at the same time.
class Barrier {
 public:
  explicit Barrier(int parties) : missing_(parties) {}
  void arrive_and_wait() {
    --missing_;
    while (missing_ > 0) std::this_thread::yield();
  }

 private:
  std::atomic<int> missing_;
};

// Set once, awaited by any thread.
class Flag {
 public:
  void set() { set_ = true; }
  bool is_set() const { return set_; }
  void wait() const {
    while (!set_) std::this_thread::yield();
  }
  // For events that must not happen: false after a time in which they would have.
  bool set_within_a_moment() const;

 private:
  std::atomic<bool> set_{false};
};

// A hook that holds the first thread that reaches it.
class Hold {
 public:
  void operator()() {
    if (taken_.exchange(true)) return;
    held_.set();
    released_.wait();
  }
  void wait_until_held() const { held_.wait(); }
  void release() { released_.set(); }
  std::function<void()> hook() {
    return [this] { (*this)(); };
  }

 private:
  std::atomic<bool> taken_{false};
  Flag held_;
  Flag released_;
};

// Removes all hooks. Constructed before the threads that use them, so that it is destroyed after
// them.
struct Hooks {
  ~Hooks();
};

template <typename Condition>
void eventually(Condition condition) {
  while (!condition()) std::this_thread::yield();
}

// True if the condition came true within a time that suffices on a busy machine.
template <typename Condition>
bool in_time(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!condition()) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::yield();
  }
  return true;
}

struct Shape {
  uint64_t page_size = kSmallPage;
  std::vector<uint64_t> region_pages = {64};  // in memory-file order
  bool descending = false;                    // order of addresses
  bool reserve = true;                        // huge pages from the pool, when mapped
  std::vector<uint64_t> holes;                // pages that the memory file does not store
  std::vector<uint64_t> zeros;                // pages that it stores as zeros
  std::string directory;                      // of the memory file; empty: a new temporary one
  uint64_t features = 0;                      // of the userfaultfd, beside those of Firecracker

  uint64_t pages() const {
    uint64_t all = 0;
    for (const uint64_t pages : region_pages) all += pages;
    return all;
  }
  uint64_t bytes() const { return pages() * page_size; }
};

// Waits until every later change of a file shows in its times.
void wait_until_settled(const std::string& path);

// Drops a file from the page cache, so that reads wait for the disk.
void forget_cached(const std::string& path);

// Bytes of a memory file: they differ between pages and offsets, and none is zero.
std::vector<uint8_t> memory_bytes(const Shape& shape);
bool write_memory_file(const std::string& path, const Shape& shape,
                       const std::vector<uint8_t>& bytes);

// Registered memory, as in a VMM. Every region is followed by a gap.
class Guest {
 public:
  explicit Guest(const Shape& shape);
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  // What this machine lacks, or empty.
  const std::string& missing() const { return missing_; }
  int uffd() const { return uffd_.get(); }
  reap::UniqueFd uffd_for_the_handler() const;
  const std::vector<reap::Region>& regions() const { return regions_; }
  uint8_t* at(uint64_t offset) const;
  uint8_t* page(uint64_t page) const { return at(page * page_size_); }

  // madvise(MADV_DONTNEED): returns when the event has been read.
  bool remove(uint64_t first_page, uint64_t pages = 1) const;
  // True if an event is queued and unread.
  bool remove_is_pending() const;
  // Number of faults that are queued and unread.
  unsigned long faults_pending() const;
  // True if the page is present. Does not touch it.
  bool is_present(uint64_t page) const;
  // UFFDIO_COPY by another party: the handler does not learn of it.
  bool install(uint64_t page, const uint8_t* bytes, bool wake = true) const;
  void unregister_all() const;
  // Replaces a small page by a new, missing one, which is registered. The handler does not learn of
  // it.
  bool map_anew(uint64_t page) const;

 private:
  bool open_uffd(uint64_t features);
  bool map_regions(const Shape& shape);
  bool register_memory(void* start, uint64_t length) const;

  uint64_t page_size_;
  std::string missing_;
  reap::UniqueFd uffd_;
  reap::Mapping reservation_;
  uint8_t* probe_ = nullptr;  // a separate page, to find out whether an event is unread
  std::vector<reap::Region> regions_;
};

// Threads that wait for a guest's faults and serve them until stopped.
class Servers {
 public:
  explicit Servers(reap::FaultHandler& handler, unsigned threads = 1);
  ~Servers() { stop(); }
  // A page is installed before it is counted: stop before reading the counters.
  void stop();
  // Outcome of the first thread that ended; only after one has.
  reap::FaultHandler::Served wait_for_end() const;

 private:
  void run();

  reap::FaultHandler& handler_;
  std::atomic<bool> stopping_{false};
  std::atomic<int> ended_{-1};
  reap::UniqueFd stop_;
  std::vector<std::thread> threads_;
};

// One restore without sockets: the guest, its memory file and its fault handler.
class Restore {
 public:
  explicit Restore(Shape shape = {}, bool record = false);
  ~Restore();

  const std::string& missing() const { return guest.missing(); }
  uint64_t get(Counter counter) const { return counters.get(counter); }
  uint64_t page_size() const { return shape.page_size; }
  const uint8_t* bytes_of(uint64_t page) const { return bytes.data() + page * shape.page_size; }
  // Reopens the memory file when every later change shows in its times, for a handler that is to
  // see no change.
  void connect();
  // A new handler, which sees the memory file in its current state. It may be read meanwhile.
  void handshake();
  // Touches the page, so a handler has to serve it.
  bool has_file_bytes(uint64_t page) const;
  bool is_zero(uint64_t page) const;
  // fill() with the memory file's bytes.
  reap::FaultHandler::Filled fill(uint64_t first_page, uint64_t pages);

  const Shape shape;
  TempDir directory;
  const std::string path;
  const std::vector<uint8_t> bytes;
  reap::PageSource memory_file;
  reap::Measurements measured;
  reap::Counters& counters = measured.counters;
  reap::TraceRecorder& trace = measured.trace;
  Guest guest;
  std::unique_ptr<reap::FaultHandler> handler;
  const std::atomic<bool> never_stop{false};
  int error = 0;
};

// Reads and writes invisible to the thread sanitizer: the kernel changes guest memory, too.
uint8_t peek(const uint8_t* address);
void poke(uint8_t* address, uint8_t value);

pid_t this_thread();
// True if a thread of this process waits in the kernel.
bool is_asleep(pid_t thread);

// A thread that was joined remains listed for a moment.
uint64_t threads_here();
uint64_t descriptors_here();

}  // namespace fixture
