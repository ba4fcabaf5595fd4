// The part of the fault handler that judges the outcome of an install, and waits for memory.
#include <cerrno>
#include <utility>

#include "uffd/fault_handler.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;

// ENOMEM ends when the VMM's memory cgroup reclaims, or when pages return to the pool of huge
// pages; after this time it is a failure.
constexpr auto kNoMemoryTimeout = std::chrono::seconds(2);
// A page that was not retried for this long has been answered otherwise, as by a prefetch.
constexpr auto kForgotten = 5 * FaultHandler::kMemoryWait;

}  // namespace

FaultHandler::Step FaultHandler::settle(const uffd::Result& result, uint64_t address, bool zero) {
  const uint64_t page_size = memory_.page_size();
  switch (result.outcome) {
    case uffd::Outcome::installed: {
      counters_.add(zero ? Counter::zero : Counter::installed);
      if (short_of_memory_.load(std::memory_order_relaxed)) {
        std::lock_guard<std::mutex> lock(mutex_);
        short_of_memory_.store(false, std::memory_order_relaxed);
        starved_.reset();
      }
      return Step::done;
    }
    case uffd::Outcome::present:
      // Another thread installed the page. That woke the waiters of that moment, but EEXIST wakes
      // nobody, and this fault may have been queued later. Test: "an install by another party is no
      // lost wake-up".
      counters_.add(Counter::present);
      uffd::wake(uffd_.get(), address, page_size);
      return Step::done;
    case uffd::Outcome::unregistered:
      // The VMM unregistered this range; the kernel resolves the fault when it is retried.
      counters_.add(Counter::discarded);
      uffd::wake(uffd_.get(), address, page_size);
      return Step::done;
    case uffd::Outcome::partial:
    case uffd::Outcome::deferred:
      counters_.add(Counter::deferred);
      return Step::later;
    case uffd::Outcome::gone:
      counters_.add(Counter::discarded);
      return Step::gone;
    case uffd::Outcome::no_memory: {
      std::lock_guard<std::mutex> lock(mutex_);
      // The timeout covers one shortage: any successful install ends it.
      const auto now = Clock::now();
      if (!short_of_memory_.exchange(true, std::memory_order_relaxed)) no_memory_since_ = now;
      if (now - no_memory_since_ < kNoMemoryTimeout) return Step::later;
      break;
    }
    case uffd::Outcome::failed:
      break;
  }
  Failure failure;
  failure.code = ErrorCode::fault_unresolved;
  failure.err = result.err;
  failure.syscall = zero ? "ioctl(UFFDIO_ZEROPAGE)" : "ioctl(UFFDIO_COPY)";
  failure.offset = address;
  return fail(failure);
}

// One page at a time is retried while the VMM is short of memory, with the bytes of its first try.
// Otherwise each retry would read the pages of all waiting vCPUs again, 2 MiB each if a pool of
// huge pages is too small. Test: "a page that waits for memory is read once".
bool FaultHandler::waits_for_memory(uint64_t page) {
  std::lock_guard<std::mutex> lock(mutex_);
  return starved_ && starved_->page != page && Clock::now() - starved_->tried_at < kForgotten;
}

// Takes the bytes of a page that waited for memory; false if it has to be read.
bool FaultHandler::take_starved(uint64_t page, ServeBuffers& buffers) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!starved_ || starved_->page != page || !starved_->has_bytes) return false;
  std::swap(starved_->bytes, buffers.pages);
  starved_->has_bytes = false;
  return true;
}

void FaultHandler::settle_starved(uint64_t page, ServeBuffers& buffers, bool has_bytes, Step step) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (step != Step::later) {
    if (starved_ && starved_->page == page) starved_.reset();
    return;
  }
  if (!starved_ || starved_->page != page) {
    if (starved_ && Clock::now() - starved_->tried_at < kForgotten) return;
    starved_.emplace().page = page;
  }
  starved_->tried_at = Clock::now();
  if (!has_bytes || starved_->has_bytes) return;
  std::swap(starved_->bytes, buffers.pages);
  // Without a buffer for other pages it keeps its own.
  starved_->has_bytes = buffers.reserve(memory_.page_size());
  if (!starved_->has_bytes) std::swap(starved_->bytes, buffers.pages);
}

}  // namespace reap
