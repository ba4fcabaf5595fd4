#include "uffd/fault_handler.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <shared_mutex>
#include <unordered_set>
#include <utility>

#include "base/test_hooks.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;

// Maximum duration of one serve() call: busy guests take turns on the demand threads.
constexpr auto kTurn = std::chrono::microseconds(500);
// A longer yield went to other work: a guest would have reached its next fault by then.
constexpr auto kLongYield = std::chrono::microseconds(500);
constexpr size_t kMessagesPerRead = 32;
// Faults of a VMM that floods events are served in between. An unread event is safe: installs fail
// with EAGAIN until it is read. A turn's end also ends the drain: a REMOVE of much memory takes
// long to apply.
constexpr int kReadsPerDrain = 8;

bool is_over(Clock::time_point turn) {
  return REAP_HOOK_SAYS(turn_is_over) || Clock::now() >= turn;
}

// Drops duplicate faults: one answer wakes all waiters of a page. A VMM that wakes its own threads
// while their fault is deferred would make the list grow without bound.
void drop_duplicates(std::vector<uint64_t>* faults) {
  constexpr size_t kDedupThreshold = 64;
  if (faults->size() < kDedupThreshold) return;
  // Keeps the order: see requeue_untried().
  std::unordered_set<uint64_t> seen;
  const auto is_repeated = [&seen](uint64_t fault) { return !seen.insert(fault).second; };
  faults->erase(std::remove_if(faults->begin(), faults->end(), is_repeated), faults->end());
}

}  // namespace

FaultHandler::FaultHandler(GuestMemory memory, UniqueFd uffd, const PageSource& memory_file,
                           Measurements& measurements)
    : memory_(std::move(memory)),
      uffd_(std::move(uffd)),
      memory_file_(memory_file),
      memory_stamp_(memory_file.current_stamp()),
      data_(memory_file.data_map(memory_stamp_)),
      measured_(measurements),
      counters_(measurements.counters),
      trace_(measurements.trace),
      connected_at_(Clock::now()),
      removed_(memory_.pages()),
      installed_(memory_.pages()),
      expected_(memory_.pages()),
      read_around_(memory_stamp_[0], memory_.bytes()) {}

bool FaultHandler::ready() const { return removed_ && installed_ && expected_ && zero_block(); }

uint64_t FaultHandler::microseconds_since_connect() const {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - connected_at_).count());
}

Failure FaultHandler::failure() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

FaultHandler::Step FaultHandler::fail(const Failure& failure) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_) failure_ = failure;
  return Step::failed;
}

bool FaultHandler::has_waiting() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return !waiting_.empty();
}

void FaultHandler::put_back(uint64_t fault) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.push_back(fault);
}

// Requeues untried faults ahead of waiting ones: otherwise a turn that expires after its first
// fault would retry that one in every turn. Test: "a cold fault does not delay the faults after it
// when turns expire".
void FaultHandler::requeue_untried(const std::vector<uint64_t>& faults, size_t first) {
  std::lock_guard<std::mutex> lock(mutex_);
  waiting_.insert(waiting_.begin(), faults.begin() + static_cast<ptrdiff_t>(first), faults.end());
}

void FaultHandler::expect(uint64_t offset, uint64_t length) {
  const uint64_t page_size = memory_.page_size();
  expected_.set(offset / page_size, (offset + length + page_size - 1) / page_size);
}

bool FaultHandler::hold_out(const std::vector<uint32_t>& pages) {
  if (pages.empty()) return true;
  PageBitmap held_out(memory_.pages());
  if (!held_out) return false;
  for (const uint32_t page : pages) {
    if (page >= memory_.pages() || !expected_.test(page)) continue;
    expected_.clear(page, uint64_t{page} + 1);
    held_out.set(page);
  }
  held_out_ = std::move(held_out);
  return true;
}

FaultHandler::Served FaultHandler::serve(ServeBuffers& buffers, std::chrono::nanoseconds spin,
                                         const std::function<bool()>& before_blocking) {
  const auto turn_ends = Clock::now() + kTurn;
  Clock::time_point spin_until{};
  buffers.lost_core = false;
  for (;;) {
    const Pass pass = serve_pass(buffers, turn_ends, &before_blocking);
    if (pass.end) return *pass.end;
    const auto now = Clock::now();
    if (pass.served) spin_until = now + spin;
    if (pass.found) continue;
    if (now >= spin_until || now >= turn_ends) return Served::idle;
    // The wake-up often puts the vCPU on this thread's core, where spinning would delay the guest.
    // Under other load, a thread that yields is not scheduled again for a slice (since 6.6); one
    // that sleeps runs as soon as it is woken.
    ::sched_yield();
    buffers.lost_core = REAP_HOOK_SAYS(core_is_lost) || Clock::now() - now > kLongYield;
    if (buffers.lost_core) return Served::idle;
  }
}

FaultHandler::Served FaultHandler::serve_once(ServeBuffers& buffers) {
  const Pass pass = serve_pass(buffers, Clock::now() + kTurn, nullptr);
  return pass.end ? *pass.end : pending_state();
}

// Reads the pending messages and answers the faults. Without `before_blocking`, faults that would
// wait for the disk stay pending.
FaultHandler::Pass FaultHandler::serve_pass(ServeBuffers& buffers, Clock::time_point turn_ends,
                                            const std::function<bool()>* before_blocking) {
  std::vector<uint64_t>& faults = buffers.faults;
  faults.clear();
  if (drain(&faults, turn_ends) < 0) return {Served::failed};
  REAP_HOOK(after_drain);
  note_faults(faults);
  const bool fresh = !faults.empty();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    faults.insert(faults.end(), waiting_.begin(), waiting_.end());
    waiting_.clear();
  }
  drop_duplicates(&faults);
  if (prefetch_expected_) {
    hold_late(&faults);
    take_overdue(&faults);
  }

  Pass pass;
  pass.found = !faults.empty();
  for (size_t i = 0; i < faults.size(); ++i) {
    REAP_HOOK(before_serve);
    Step step = serve_fault(faults[i], buffers, Wait::no);
    if (step == Step::would_wait && before_blocking) {
      // The disk may take long: leave the other faults to another thread.
      requeue_untried(faults, i + 1);
      faults.resize(i + 1);
      if ((*before_blocking)()) {
        step = serve_fault(faults[i], buffers, Wait::yes);
      }
    }
    if (step == Step::gone) return {Served::gone};
    if (step == Step::failed) return {Served::failed};
    if (step == Step::later || step == Step::would_wait) put_back(faults[i]);
    pass.served = pass.served || step == Step::done;
    if (is_over(turn_ends)) {
      requeue_untried(faults, i + 1);
      return {pending_state()};
    }
  }
  // EAGAIN lasts until the thread in madvise() resumes; only the VMM's scheduler knows when.
  if (pass.found && !pass.served && !fresh) pass.end = Served::later;
  return pass;
}

// The gate and the order are those of the REMOVE rule: fault_handler_remove.cc.
int FaultHandler::drain(std::vector<uint64_t>* faults, Clock::time_point until) {
  REAP_HOOK(before_drain);
  std::lock_guard<InstallGate> lock(gate_);
  uffd_msg messages[kMessagesPerRead];
  int drained = 0;
  bool refused = false;
  for (int reads = 0; reads < kReadsPerDrain; ++reads) {
    const int got = uffd::read_messages(uffd_.get(), messages, kMessagesPerRead);
    if (got < 0) {
      Failure failure;
      failure.code = ErrorCode::fault_unresolved;
      failure.err = got;
      failure.syscall = "read(userfaultfd)";
      fail(failure);
      return got;
    }
    drained += got;
    std::vector<Removed> removes;
    for (int i = 0; i < got; ++i) {
      const uffd_msg& message = messages[i];
      if (const char* what = uffd::unsupported_event(message)) {
        refused = true;
        const bool is_fault = message.event == UFFD_EVENT_PAGEFAULT;
        const uint64_t address = is_fault ? message.arg.pagefault.address : 0;
        fail({ErrorCode::vmm_unsupported, 0, "", what, address});
      }
      if (message.event == UFFD_EVENT_PAGEFAULT) {
        faults->push_back(message.arg.pagefault.address & ~(memory_.page_size() - 1));
      } else if (message.event == UFFD_EVENT_REMOVE) {
        removes.push_back({message.arg.remove.start, message.arg.remove.end});
      } else if (message.event == UFFD_EVENT_FORK) {
        // Kept open: closed, it would let the child read zeros.
        children_.emplace_back(static_cast<int>(message.arg.fork.ufd));
      }
    }
    apply_removes(std::move(removes));
    if (refused) return -EOPNOTSUPP;
    if (static_cast<size_t>(got) < kMessagesPerRead || is_over(until)) break;
  }
  return drained;
}

void FaultHandler::note_faults(const std::vector<uint64_t>& faults) {
  if (faults.empty()) return;
  counters_.add(Counter::faults, faults.size());
  const auto now = Clock::now();
  const auto since_connect =
      std::chrono::duration_cast<std::chrono::microseconds>(now - connected_at_).count();
  measured_.steps.reach(SessionStep::first_fault, now);
  for (const uint64_t address : faults) {
    const Region* region = memory_.region_at(address);
    if (!region) continue;  // serve_fault() reports it
    const uint64_t page = memory_.page_of(region->offset + (address - region->base));
    // A page that was removed before its first touch needs nothing from the memory file.
    const bool removed = removed_.test(page);
    if (!removed) trace_.note(page, static_cast<uint64_t>(since_connect));
    FaultClass fault = FaultClass::on_demand;
    if (prefetch_expected_) {
      // Since this fault was read, the prefetch may have installed the page, and ended.
      const bool is_open = !prefetch_over_.load(std::memory_order_acquire) || installed_.test(page);
      const bool late = expected_.test(page) && is_open && !removed;
      fault = late ? FaultClass::late : FaultClass::residual;
      counters_.add(late ? Counter::late_faults : Counter::residual_faults);
    }
    measured_.waits.begin(page * memory_.page_size(), fault, now);
  }
}

// A page that the prefetch is about to install costs less in its batch than alone: the batch's
// UFFDIO_COPY wakes the waiters. Served one by one, such faults took most of the time from the
// batches that would have answered them. So they are held until their page is present or removed,
// the prefetch has ended, or kMaxHold has passed; after that they are served like others. Test: "a
// late fault is answered by the batch that brings its page".
//
// No wake-up is lost: the kernel queues a fault before it checks whether the page is present, and
// an install wakes all queued waiters, whether their message was read or not (handle_userfault(),
// __wake_userfault()).
bool FaultHandler::is_left_to_prefetch(uint64_t fault, uint64_t* offset) const {
  const Region* region = memory_.region_at(fault);
  if (!region || prefetch_over_.load(std::memory_order_acquire)) return false;
  *offset = region->offset + (fault - region->base);
  const uint64_t page = memory_.page_of(*offset);
  return expected_.test(page) && !removed_.test(page);
}

void FaultHandler::hold_late(std::vector<uint64_t>* faults) {
  const auto now = Clock::now();
  std::vector<uint64_t> wanted;
  const auto is_held = [&](uint64_t fault) {
    uint64_t offset = 0;
    if (!is_left_to_prefetch(fault, &offset)) return false;
    if (!installed_.test(memory_.page_of(offset))) wanted.push_back(offset);
    std::lock_guard<std::mutex> lock(mutex_);
    held_.push_back({fault, now});
    holding_.store(true, std::memory_order_relaxed);
    return true;
  };
  faults->erase(std::remove_if(faults->begin(), faults->end(), is_held), faults->end());
  if (on_late_) std::for_each(wanted.begin(), wanted.end(), on_late_);
}

// Adds held faults that no install is about to answer any more, and drops answered ones.
void FaultHandler::take_overdue(std::vector<uint64_t>* faults) {
  if (!holding_.load(std::memory_order_relaxed)) return;
  const auto limit = Clock::now() - kMaxHold;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto is_done = [&](const Held& held) {
    uint64_t offset = 0;
    const bool is_left = is_left_to_prefetch(held.fault, &offset);
    if (is_left && installed_.test(memory_.page_of(offset))) {
      dropped_.insert(held.fault);
      measured_.waits.end(offset, 1);
      return true;
    }
    if (is_left && held.since > limit) return false;
    faults->push_back(held.fault);
    return true;
  };
  held_.erase(std::remove_if(held_.begin(), held_.end(), is_done), held_.end());
  holding_.store(!held_.empty(), std::memory_order_relaxed);
}

// Wakes whoever waits for a page that was installed, mapped anew by the VMM, and touched again: no
// event tells of that, so the fault counted as answered. Test: "a page that is missing again during
// the prefetch comes at its end".
void FaultHandler::end_prefetch() {
  std::unordered_set<uint64_t> dropped;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    prefetch_over_.store(true, std::memory_order_release);
    dropped.swap(dropped_);
  }
  for (const uint64_t fault : dropped) uffd::wake(uffd_.get(), fault, memory_.page_size());
}

FaultHandler::Step FaultHandler::serve_fault(uint64_t address, ServeBuffers& buffers, Wait wait) {
  const uint64_t page_size = memory_.page_size();
  const Region* region = memory_.region_at(address);
  if (!region) {
    Failure failure;
    failure.code = ErrorCode::fault_unresolved;
    failure.check = "address";
    failure.offset = address;
    return fail(failure);
  }
  const uint64_t offset = region->offset + (address - region->base);
  const uint64_t page = memory_.page_of(offset);
  const bool was_short = is_short_of_memory();
  if (was_short && waits_for_memory(page)) return Step::later;

  const bool removed = removed_.test(page);
  bool zero = removed || data_.hole_end(offset) >= offset + page_size;
  if (!zero && !(was_short && take_starved(page, buffers))) {
    uint8_t* const bytes = buffers.pages.data();
    PageSource::Result read{PageSource::Read::done};
    if (wait == Wait::no) {
      read = memory_file_.read_cached(offset, bytes, page_size);
      if (read.read == PageSource::Read::would_block) return Step::would_wait;
      read_around_.on_hit();
    } else {
      // No second look: the first one has started to read the page, which may have come by now, and
      // is a miss all the same. Test: "a fault on an uncached page reads its neighbours into the
      // page cache".
      read_around(offset);
      read = memory_file_.read(offset, bytes, page_size);
    }
    if (read.read != PageSource::Read::done) {
      return fail(read_failure(ErrorCode::source_read, read, offset));
    }
    counters_.add(Counter::bytes_read, page_size);
  }
  // Applies to holes as well: they may have been punched. A removed page needs nothing from the
  // file.
  const auto now = [&] {
    return wait == Wait::yes ? memory_file_.refreshed_stamp() : memory_file_.current_stamp();
  };
  if (!removed && has_changed(now())) return fail(changed_failure(offset));

  REAP_HOOK(before_install);
  uffd::Result result;
  {
    std::shared_lock<InstallGate> lock(gate_);
    zero = zero || removed_.test(page);
    REAP_HOOK(before_ioctl);
    result = zero ? install_zeros(address, page_size)
                  : uffd::copy(uffd_.get(), address, buffers.pages.data(), page_size);
    if (result.outcome == uffd::Outcome::installed) installed_.set(page);
  }
  if (result.outcome == uffd::Outcome::present && !confirm_present(page)) {
    result = {uffd::Outcome::no_memory, 0, -ENOMEM};
  }
  const Step step = settle(result, address, zero);
  if (step == Step::done) measured_.waits.end(offset, page_size);
  if (was_short || is_short_of_memory()) settle_starved(page, buffers, !zero, step);
  if (result.outcome == uffd::Outcome::installed && !removed) install_ahead(offset, buffers);
  return step;
}

}  // namespace reap
