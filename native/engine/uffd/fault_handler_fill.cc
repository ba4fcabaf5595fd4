// The part of the fault handler that installs pages before they are touched.
#include <algorithm>
#include <cerrno>
#include <shared_mutex>
#include <thread>

#include "base/page.h"
#include "base/test_hooks.h"
#include "uffd/fault_handler.h"

namespace reap {

namespace {

// Bounds the time that one install can keep the demand thread out of the gate: about 40 us.
constexpr uint64_t kMaxInstall = 128 << 10;
// On a busy machine a thread of the VMM may get no core for almost as long.
constexpr auto kLastDrain = std::chrono::seconds(1);
constexpr auto kPause = std::chrono::microseconds(50);

}  // namespace

// With an empty huge-page pool the kernel also returns EEXIST (seen on 6.18: it finds the page
// table entry that it has just created). A guest woken for it would fault for ever, and a detached
// one would read zeros. Test: "an empty pool of huge pages is waited for".
bool FaultHandler::confirm_present(uint64_t page) {
  if (memory_.page_size() < kHugePage) return true;
  // Installers set the bit before they leave the gate.
  std::lock_guard<InstallGate> lock(gate_);
  return installed_.test(page);
}

// Zeros of the largest page size, never written.
const uint8_t* FaultHandler::zero_block() {
  static const Mapping block = Mapping::anonymous(kHugePage);
  return block.data();
}

uffd::Result FaultHandler::install_zeros(uint64_t address, uint64_t length) {
  // UFFDIO_ZEROPAGE is EINVAL on hugetlb (mm/userfaultfd.c): zero those pages with a copy.
  if (memory_.page_size() < kHugePage) return uffd::zeropage(uffd_.get(), address, length);
  return uffd::copy(uffd_.get(), address, zero_block(), length);
}

// Length of the run from `offset` whose pages are missing and neither removed nor left to faults; 0
// if the first is not.
uint64_t FaultHandler::next_run(uint64_t offset, uint64_t end, Purpose purpose) const {
  const uint64_t page_size = memory_.page_size();
  const uint64_t longest = std::max(page_size, kMaxInstall);
  const uint64_t limit = std::min({end - offset, memory_.host_range(offset).length, longest});
  const bool holds_out = held_out_ && purpose != Purpose::detach;
  uint64_t run = 0;
  while (run < limit) {
    const uint64_t page = memory_.page_of(offset + run);
    if (installed_.test(page) || removed_.test(page)) break;
    if (holds_out && held_out_.test(page)) break;
    run += page_size;
  }
  return run;
}

FaultHandler::Filled FaultHandler::fill(uint64_t offset, const uint8_t* bytes, uint64_t length,
                                        Purpose purpose, const std::atomic<bool>& stop, int* err) {
  const uint64_t page_size = memory_.page_size();
  const uint64_t start = offset;
  const uint64_t end = offset + length;
  uint64_t one_by_one_until = 0;
  while (offset < end) {
    if (stop.load(std::memory_order_relaxed)) return Filled::stopped;
    uffd::Result result;
    REAP_HOOK(before_prefetch_install);
    {
      std::shared_lock<InstallGate> lock(gate_);
      uint64_t run = next_run(offset, end, purpose);
      if (run == 0) {
        offset += page_size;
        continue;
      }
      if (offset < one_by_one_until) run = page_size;
      REAP_HOOK(before_ioctl);
      const uint64_t address = memory_.host_range(offset).address;
      result = bytes ? uffd::copy(uffd_.get(), address, bytes + (offset - start), run)
                     : install_zeros(address, run);
      installed_.set(memory_.page_of(offset), memory_.page_of(offset + result.bytes));
      if (result.outcome == uffd::Outcome::unregistered && run > page_size) {
        // The run crosses the edge of the registered memory: find the edge page by page.
        one_by_one_until = offset + run;
        continue;
      }
    }
    switch (result.outcome) {
      case uffd::Outcome::installed:
      case uffd::Outcome::partial: {
        const uint64_t pages = result.bytes / page_size;
        counters_.add(bytes ? Counter::installed : Counter::zero, pages);
        if (purpose == Purpose::prefetch) {
          counters_.add(Counter::prefetched, pages);
          measured_.steps.reach(SessionStep::first_install);
        }
        if (purpose == Purpose::ahead) counters_.add(Counter::ahead, pages);
        measured_.waits.end(offset, result.bytes);
        offset += result.bytes;
        break;
      }
      case uffd::Outcome::present:
        if (!confirm_present(memory_.page_of(offset))) return Filled::no_memory;
        // A thread that faulted on it has its own message in the queue, which serve() answers.
        counters_.add(Counter::present);
        offset += page_size;
        break;
      case uffd::Outcome::unregistered:
        counters_.add(Counter::discarded);
        offset += page_size;
        break;
      case uffd::Outcome::deferred:
        counters_.add(Counter::deferred);
        return Filled::deferred;
      case uffd::Outcome::no_memory:
        return Filled::no_memory;
      case uffd::Outcome::gone:
        counters_.add(Counter::discarded);
        return Filled::gone;
      case uffd::Outcome::failed:
        *err = result.err;
        return Filled::failed;
    }
  }
  return Filled::all;
}

// During a prefetch a fault reads only its page from the disk.
void FaultHandler::read_around(uint64_t offset) {
  if (prefetch_is_running() || memory_.page_size() >= kHugePage) return;
  const ReadAround::Window window = read_around_.on_miss(offset);
  if (window.length == 0) return;
  // Starts with the part next to the page, which would otherwise wait for the window before it.
  constexpr uint64_t kFirst = 128 << 10;
  if (window.length > kFirst) memory_file_.will_need(offset / kFirst * kFirst, kFirst);
  memory_file_.will_need(window.offset, window.length);
}

// Installs the pages after a fault that continues a run, if they are cached or holes.
void FaultHandler::install_ahead(uint64_t offset, ServeBuffers& buffers) {
  const uint64_t page_size = memory_.page_size();
  if (prefetch_is_running() || page_size >= kHugePage || trace_.is_active() ||
      short_of_memory_.load(std::memory_order_relaxed)) {
    return;
  }
  const auto is_present = [this](uint64_t begin, uint64_t end) {
    for (uint64_t page = memory_.page_of(begin); page < memory_.page_of(end); ++page) {
      if (!installed_.test(page) && !removed_.test(page)) return false;
    }
    return true;
  };
  const uint64_t begin = offset + page_size;
  uint64_t length = runs_.on_fault(offset, page_size, is_present);
  length = std::min(length, memory_.bytes() - begin);
  if (length == 0) return;

  const uint64_t hole_end = data_.hole_end(begin) / page_size * page_size;
  const uint8_t* bytes = nullptr;
  if (hole_end > begin) {
    length = std::min(length, hole_end - begin);
  } else {
    length = std::min(length, data_.data_end(begin) / page_size * page_size - begin);
    // A non-blocking read starts to read missing pages, which may block on the device's queue.
    while (length > 0 && !memory_file_.is_cached(begin, length)) {
      length = length / 2 / page_size * page_size;
    }
    if (length == 0) return;
    const auto read = memory_file_.read_cached(begin, buffers.pages.data(), length);
    if (read.read != PageSource::Read::done) return;
    counters_.add(Counter::bytes_read, length);
    bytes = buffers.pages.data();
  }
  if (memory_file_changed()) return;
  static const std::atomic<bool> never{false};
  int error = 0;
  // Pages that cannot be installed are left to faults.
  fill(begin, bytes, length, Purpose::ahead, never, &error);
}

int FaultHandler::unregister(uint64_t address, uint64_t length) {
  const int error = uffd::unregister(uffd_.get(), address, length);
  if (error != -EINVAL) return error;
  // The kernel refuses the whole range if a part of it was unmapped, or mapped as something that
  // userfaultfd does not support. That part needs nothing; its neighbours do.
  if (length <= memory_.page_size()) return 0;
  const uint64_t half = length / 2 / memory_.page_size() * memory_.page_size();
  const int low = unregister(address, half);
  const int high = unregister(address + half, length - half);
  return low != 0 ? low : high;
}

int FaultHandler::unregister() {
  int first_error = 0;
  for (const Region& region : memory_.regions()) {
    const int error = unregister(region.base, region.size);
    if (first_error == 0) first_error = error;
    uffd::wake(uffd_.get(), region.base, region.size);
    measured_.waits.end(region.offset, region.size);
  }
  // A thread in madvise() waits until somebody reads its REMOVE: the VMM keeps the userfaultfd
  // open. It may not have queued the event yet, but the kernel counts it before it lets go of the
  // memory map (userfaultfd_remove()), so UFFDIO_UNREGISTER comes after that. The limit is for a
  // VMM that registers its memory again and gives back more. Test: "a REMOVE that is queued after
  // the last look holds nobody".
  const Region& any = memory_.regions().front();
  const auto until = std::chrono::steady_clock::now() + kLastDrain;
  std::vector<uint64_t> faults;
  while (drain(&faults, until) >= 0 && uffd::is_changing(uffd_.get(), any.base, any.size) &&
         std::chrono::steady_clock::now() < until) {
    faults.clear();
    std::this_thread::sleep_for(kPause);
  }
  return first_error;
}

}  // namespace reap
