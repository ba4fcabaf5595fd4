// Serves the page faults of one guest: the REMOVE rule, installs, the trace. Knows nothing of
// sockets, sessions or JavaScript; tests drive it directly.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

#include "base/failure.h"
#include "base/page_bitmap.h"
#include "files/page_source.h"
#include "uffd/counters.h"
#include "uffd/guest_memory.h"
#include "uffd/install_gate.h"
#include "uffd/locality.h"
#include "uffd/uffd.h"

namespace reap {

// What a serving thread owns: room for pages and for the faults it has read.
struct ServeBuffers {
  Mapping pages;  // as long as the guest's page at the least
  std::vector<uint64_t> faults;
  // Whether the last yield of serve() went to other work.
  bool lost_core = false;
  bool reserve(uint64_t page_size) {
    const uint64_t length = std::max(page_size, FaultRuns::kMaxAhead);
    if (pages.size() < length) pages = Mapping::buffer(length);
    return static_cast<bool>(pages);
  }
};

class FaultHandler {
 public:
  // `memory_file`, `counters` and `trace` outlive the handler.
  FaultHandler(GuestMemory memory, UniqueFd uffd, const PageSource& memory_file, Counters& counters,
               TraceRecorder& trace);

  // False when there was no memory for the bitmaps.
  bool ready() const;
  const GuestMemory& memory() const { return memory_; }
  // The state of the memory file at the handshake, and whether its content is another now: what was
  // installed is of that state.
  const FileStamp& memory_stamp() const { return memory_stamp_; }
  bool memory_file_changed() const {
    return change_of(memory_stamp_, memory_file_.look()) == FileChange::content;
  }
  int fd() const { return uffd_.get(); }

  enum class Served {
    idle,    // nothing left to do until the uffd is readable again
    later,   // some faults wait for the VMM to finish a REMOVE: call again in a moment
    gone,    // the VMM's memory is gone
    failed,  // see failure()
  };
  // Reads and serves until nothing is left. After a served fault it looks again for `spin` before
  // it gives up: faults come in bursts, and waking a sleeping thread is half of a fault's cost.
  // `before_blocking` is called before a read that waits for the disk, after the other faults in
  // hand were put back: another thread may then call serve() beside this one. It may refuse, which
  // leaves the fault for later.
  Served serve(ServeBuffers& buffers, std::chrono::nanoseconds spin,
               const std::function<bool()>& before_blocking);
  // For a thread that has other work: answers what is there now and waits for no disk.
  Served serve_once(ServeBuffers& buffers);
  // Whether late faults are left to the installs that are about to answer them: serve() is to be
  // called again within kMaxHold.
  bool holds_faults() const { return holding_.load(std::memory_order_relaxed); }
  static constexpr auto kMaxHold = std::chrono::milliseconds(10);
  // Whether faults that were read wait for another try; held ones do not count.
  bool has_waiting() const;
  Failure failure() const;

  // Installs [offset, offset + length) of guest memory wherever nothing is yet, from `bytes` or,
  // when null, as zeros. Removed pages are left alone. Offset and length are multiples of the page
  // size. Whatever it returns, a second call skips quickly over what the first one did.
  enum class Filled {
    all,        // every page that can be there is there
    stopped,    // `stop` was set
    deferred,   // a REMOVE is pending: call again in a moment
    no_memory,  // the VMM may have no more memory
    gone,       // the VMM's memory is gone
    failed,     // *err says why
  };
  enum class Purpose { prefetch, ahead, detach };
  Filled fill(uint64_t offset, const uint8_t* bytes, uint64_t length, Purpose purpose,
              const std::atomic<bool>& stop, int* err);

  // Announces a prefetch, before the first fault is served, so that late and residual faults can
  // be told apart; then the pages that it will bring, in bytes of the memory file. `on_late` hears
  // of a page that the guest waits for.
  void expect_prefetch(std::function<void(uint64_t offset)> on_late = nullptr) {
    prefetch_expected_ = true;
    on_late_ = std::move(on_late);
  }
  void expect(uint64_t offset, uint64_t length);
  void prefetch_is_over() { prefetch_over_.store(true, std::memory_order_release); }

  // Ends the kernel's interest in the guest's memory; what is still missing reads as zeros.
  // 0 or a negative errno.
  int unregister();

  uint64_t microseconds_since_connect() const;

 private:
  enum class Step { done, would_wait, later, gone, failed };
  enum class Wait { no, yes };
  struct Pass {
    std::optional<Served> end;  // stop, and say so
    bool found = false;         // faults
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
  int drain(std::vector<uint64_t>* faults);
  void apply_remove(uint64_t start, uint64_t end);
  void note_faults(const std::vector<uint64_t>& faults);
  Step serve_fault(uint64_t address, ServeBuffers& buffers, Wait wait);
  bool prefetch_is_running() const {
    return prefetch_expected_ && !prefetch_over_.load(std::memory_order_relaxed);
  }
  void read_around(uint64_t offset);
  void install_ahead(uint64_t offset, ServeBuffers& buffers);
  Step settle(const uffd::Result& result, uint64_t address, bool zero);
  static const uint8_t* zero_block();
  uffd::Result install_zeros(uint64_t address, uint64_t length);
  bool really_present(uint64_t page);
  uint64_t next_run(uint64_t offset, uint64_t end) const;
  Step fail(const Failure& failure);
  void put_back(uint64_t fault);
  void put_back_untried(const std::vector<uint64_t>& faults, size_t first);
  Served left_over() const { return has_waiting() ? Served::later : Served::idle; }
  int unregister(uint64_t address, uint64_t length);

  const GuestMemory memory_;
  const UniqueFd uffd_;
  const PageSource& memory_file_;
  const FileStamp memory_stamp_;
  Counters& counters_;
  TraceRecorder& trace_;
  const std::chrono::steady_clock::time_point connected_at_;

  // Held shared around "is it removed? then install", exclusive around reading messages: see
  // drain() for the race.
  InstallGate gate_;
  PageBitmap removed_;    // given back by the guest: reads as zero from then on. Never cleared.
  PageBitmap installed_;  // a hint that saves ioctls; the kernel's EEXIST is the truth
  PageBitmap expected_;
  ReadAround read_around_;
  FaultRuns runs_;
  bool prefetch_expected_ = false;
  std::function<void(uint64_t offset)> on_late_;
  std::atomic<bool> prefetch_over_{false};

  std::atomic<bool> short_of_memory_{false};  // set under mutex_
  std::atomic<bool> holding_{false};          // the same; whether held_ has any

  mutable std::mutex mutex_;       // guards what follows
  std::vector<uint64_t> waiting_;  // faults that were read and not yet answered
  std::vector<Held> held_;         // those that an install is about to answer
  std::chrono::steady_clock::time_point no_memory_since_{};
  Failure failure_;
};

}  // namespace reap
