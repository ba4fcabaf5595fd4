// The REMOVE rule: a page that the guest has given back reads as zeros from then on, never as the
// bytes of the memory file. drain() applies it, and handles two races.
//
// A read can return a fault before an earlier REMOVE (the kernel returns faults first), and
// answering it from the memory file would be wrong. So all messages are read and every REMOVE is
// applied before the first fault is served. A later REMOVE is safe: until it is read, installs fail
// with EAGAIN. Test: "a fault read before its REMOVE gets zeros".
//
// Reading a REMOVE lets madvise() continue and drop the pages. An install on another thread that
// has checked before, and found the page not removed, would then restore the old bytes: the page is
// missing, so the kernel accepts them. (Since 6.9 the kernel's map_changing_lock ends installs in
// flight before the event is queued, but it does not cover our check.) Hence the gate: while
// messages are read, no thread is between that check and the end of the ioctl. Test: "a prefetch in
// flight does not bring a removed page back".
#include <algorithm>

#include "uffd/fault_handler.h"

namespace reap {

// Merges the ranges of one read first: a VMM that gives all its memory back from many threads costs
// one walk over the bitmaps.
void FaultHandler::apply_removes(std::vector<Removed> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Removed& one, const Removed& other) { return one.start < other.start; });
  for (size_t i = 0; i < ranges.size();) {
    const uint64_t start = ranges[i].start;
    uint64_t end = start;
    for (; i < ranges.size() && ranges[i].start <= end; ++i) end = std::max(end, ranges[i].end);
    for (const Region& region : memory_.regions()) {
      const uint64_t first = std::max(start, region.base);
      const uint64_t last = std::min(end, region.base + region.size);
      if (first >= last) continue;
      const uint64_t first_page = memory_.page_of(region.offset + (first - region.base));
      const uint64_t end_page = memory_.page_of(region.offset + (last - region.base) - 1) + 1;
      removed_.set(first_page, end_page);
      installed_.clear(first_page, end_page);
      counters_.add(Counter::removed, end_page - first_page);
      if (!measured_.timeline.is_enabled()) continue;
      const auto now = std::chrono::steady_clock::now();
      Timeline::Span span{SpanKind::removal, now, now};
      span.offset = first_page * memory_.page_size();
      span.bytes = (end_page - first_page) * memory_.page_size();
      measured_.timeline.add(span);
    }
  }
}

}  // namespace reap
