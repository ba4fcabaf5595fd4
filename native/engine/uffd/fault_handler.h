// Serves the page faults of one guest: REMOVE events, installs, the trace. Independent of sockets,
// sessions and JavaScript; tests drive it directly.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <unordered_set>
#include <vector>

#include "base/failure.h"
#include "base/page_bitmap.h"
#include "files/page_source.h"
#include "uffd/guest_memory.h"
#include "uffd/install_gate.h"
#include "uffd/locality.h"
#include "uffd/measurements.h"
#include "uffd/uffd.h"

namespace reap {

// Buffers of a serving thread, for pages and for the faults that it has read.
struct ServeBuffers {
  Mapping pages;  // at least one page of the guest
  std::vector<uint64_t> faults;
  // True if the last yield of serve() went to other work.
  bool lost_core = false;
  bool reserve(uint64_t page_size) {
    const uint64_t length = std::max(page_size, FaultRuns::kMaxAhead);
    if (pages.size() < length) pages = Mapping::buffer(length);
    return static_cast<bool>(pages);
  }
};

// A page that the VMM has no memory for.
struct StarvedPage {
  uint64_t page = 0;
  Mapping bytes;
  bool has_bytes = false;  // from the memory file; false while a thread retries with them
  std::chrono::steady_clock::time_point tried_at{};
};

class FaultHandler {
 public:
  // `memory_file` and `measurements` must outlive the handler.
  FaultHandler(GuestMemory memory, UniqueFd uffd, const PageSource& memory_file,
               Measurements& measurements);

  // False if there was no memory for the bitmaps.
  bool ready() const;
  const GuestMemory& memory() const { return memory_; }
  // State of the memory file at the handshake, which is that of all installed pages, and whether
  // its content has changed since.
  const FileStamp& memory_stamp() const { return memory_stamp_; }
  bool memory_file_changed() const { return has_changed(memory_file_.current_stamp()); }
  int fd() const { return uffd_.get(); }

  enum class Served {
    idle,    // nothing to do until the uffd is readable again
    later,   // some faults wait for the VMM to complete a REMOVE: call again soon
    gone,    // the VMM's memory is gone
    failed,  // see failure()
  };
  // Reads and serves until nothing is pending. After a served fault it polls for `spin` before it
  // returns: faults come in bursts, and waking a sleeping thread is half of a fault's cost.
  // `before_blocking` is called before a read that waits for the disk, after the other faults have
  // been requeued: another thread may then call serve() concurrently. It may refuse by returning
  // false, which leaves the fault for later.
  Served serve(ServeBuffers& buffers, std::chrono::nanoseconds spin,
               const std::function<bool()>& before_blocking);
  // For a thread with other work: serves pending faults without waiting for the disk.
  Served serve_once(ServeBuffers& buffers);
  // True while late faults are left to installs that are about to answer them: serve() must be
  // called again within kMaxHold.
  bool holds_faults() const { return holding_.load(std::memory_order_relaxed); }
  static constexpr auto kMaxHold = std::chrono::milliseconds(10);
  // True while the VMM lacks memory for a page: serve() is to be called again in kMemoryWait.
  bool is_short_of_memory() const { return short_of_memory_.load(std::memory_order_relaxed); }
  static constexpr auto kMemoryWait = std::chrono::milliseconds(10);
  // True if read faults wait for another attempt; held ones do not count.
  bool has_waiting() const;
  Failure failure() const;

  // Installs [offset, offset + length) of guest memory where pages are missing, from `bytes` or, if
  // null, as zeros. Skips removed pages. Offset and length are multiples of the page size. Whatever
  // the outcome, a second call quickly skips pages that the first one installed.
  enum class Filled {
    all,        // every page of the range that can be present is present
    stopped,    // `stop` was set
    deferred,   // a REMOVE is pending: call again soon
    no_memory,  // the VMM cannot get more memory
    gone,       // the VMM's memory is gone
    failed,     // see *err
  };
  enum class Purpose { prefetch, ahead, detach };
  Filled fill(uint64_t offset, const uint8_t* bytes, uint64_t length, Purpose purpose,
              const std::atomic<bool>& stop, int* err);

  // Announces a prefetch, before the first fault is served, so that late and residual faults can be
  // told apart; then the pages that it will install, in bytes of the memory file. `on_late` is
  // called for a page that the guest waits for.
  void expect_prefetch(std::function<void(uint64_t offset)> on_late = nullptr) {
    prefetch_expected_ = true;
    on_late_ = std::move(on_late);
  }
  void expect(uint64_t offset, uint64_t length);
  // Leaves expected pages, in units of the guest's page size, to faults, which show whether the
  // guest needs them: neither a prefetch nor an install ahead of faults brings them. To be called
  // before either begins. Returns false if there was no memory.
  bool hold_out(const std::vector<uint32_t>& pages);
  void end_prefetch();

  // Unregisters the guest's memory; pages still missing read as zeros. Returns 0 or a negative
  // errno.
  int unregister();

  uint64_t microseconds_since_connect() const;

 private:
  bool has_changed(const FileStamp& now) const {
    return change_of(memory_stamp_, now) == FileChange::content;
  }

  enum class Step { done, would_wait, later, gone, failed };
  enum class Wait { no, yes };
  struct Pass {
    std::optional<Served> end;  // outcome to return at once
    bool found = false;         // at least one fault
    bool served = false;
  };

  struct Held {
    uint64_t fault;
    std::chrono::steady_clock::time_point since;
  };

  Pass serve_pass(ServeBuffers& buffers, std::chrono::steady_clock::time_point turn_ends,
                  const std::function<bool()>* before_blocking);
  bool is_left_to_prefetch(uint64_t fault, uint64_t* offset) const;
  void hold_late(std::vector<uint64_t>* faults);
  void take_overdue(std::vector<uint64_t>* faults);
  int drain(std::vector<uint64_t>* faults, std::chrono::steady_clock::time_point until);
  struct Removed {
    uint64_t start;
    uint64_t end;
  };
  void apply_removes(std::vector<Removed> ranges);
  void note_faults(const std::vector<uint64_t>& faults);
  Step serve_fault(uint64_t address, ServeBuffers& buffers, Wait wait);
  bool prefetch_is_running() const {
    return prefetch_expected_ && !prefetch_over_.load(std::memory_order_relaxed);
  }
  bool waits_for_memory(uint64_t page);
  bool take_starved(uint64_t page, ServeBuffers& buffers);
  void settle_starved(uint64_t page, ServeBuffers& buffers, bool has_bytes, Step step);
  void read_around(uint64_t offset);
  void install_ahead(uint64_t offset, ServeBuffers& buffers);
  Step settle(const uffd::Result& result, uint64_t address, bool zero);
  static const uint8_t* zero_block();
  uffd::Result install_zeros(uint64_t address, uint64_t length);
  bool confirm_present(uint64_t page);
  uint64_t next_run(uint64_t offset, uint64_t end, Purpose purpose) const;
  Step fail(const Failure& failure);
  void put_back(uint64_t fault);
  void requeue_untried(const std::vector<uint64_t>& faults, size_t first);
  Served pending_state() const { return has_waiting() ? Served::later : Served::idle; }
  int unregister(uint64_t address, uint64_t length);

  const GuestMemory memory_;
  const UniqueFd uffd_;
  std::vector<UniqueFd> children_;  // userfaultfds of processes that the VMM has forked
  const PageSource& memory_file_;
  const FileStamp memory_stamp_;
  const DataMap& data_;
  Measurements& measured_;
  Counters& counters_;
  TraceRecorder& trace_;
  const std::chrono::steady_clock::time_point connected_at_;

  // Held shared from the check for removed pages to the end of the install, exclusive while
  // messages are read: see drain() for the race.
  InstallGate gate_;
  PageBitmap removed_;    // given back by the guest: reads as zeros. Never cleared.
  PageBitmap installed_;  // a hint that saves ioctls; the kernel's EEXIST is authoritative
  PageBitmap expected_;
  PageBitmap held_out_;  // empty if no page is
  ReadAround read_around_;
  FaultRuns runs_;
  bool prefetch_expected_ = false;
  std::function<void(uint64_t offset)> on_late_;
  std::atomic<bool> prefetch_over_{false};

  std::atomic<bool> short_of_memory_{false};  // set under mutex_
  std::atomic<bool> holding_{false};          // set under mutex_: held_ is not empty

  mutable std::mutex mutex_;              // guards what follows
  std::vector<uint64_t> waiting_;         // faults read and not yet answered
  std::vector<Held> held_;                // faults that an install is about to answer
  std::unordered_set<uint64_t> dropped_;  // of them, those that one seems to have answered
  std::chrono::steady_clock::time_point no_memory_since_{};
  std::optional<StarvedPage> starved_;
  Failure failure_;
};

}  // namespace reap
