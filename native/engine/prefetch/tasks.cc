// Tasks of a prefetch thread, performed without the prefetcher's mutex.
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <thread>

#include "base/crc32c.h"
#include "base/page.h"
#include "base/test_hooks.h"
#include "prefetch/prefetcher.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;
using Filled = FaultHandler::Filled;

constexpr auto kPendingRemovePause = std::chrono::microseconds(100);
// Limits the time that a VMM with a pending REMOVE can hold a worker.
constexpr int kPendingRemovePauses = 20;
// Bytes installed between two polls for faults: about 50 us.
constexpr uint64_t kBytesBetweenPolls = 128 << 10;

// CPU time of this thread.
std::chrono::nanoseconds cpu_time() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

Failure fill_failure(const char* check, Filled filled, int error, uint64_t offset) {
  Failure failure;
  failure.code = ErrorCode::fault_unresolved;
  failure.err = filled == Filled::no_memory ? -ENOMEM : error;
  failure.syscall = "ioctl(UFFDIO_COPY)";
  failure.check = check;
  failure.offset = offset;
  return failure;
}

}  // namespace

void Prefetcher::perform(Task& task, WorkerState& state) {
  const Job& job = *task.job;
  switch (task.step) {
    case Step::fetch_ahead:
      fetch(job, task, task.buffer->data(), state.number);
      break;
    case Step::install:
      // The unit may have been fetched before the VM connected.
      if (check_stamps(job, task, 0)) install(job, task, task.buffer->data(), state);
      break;
    case Step::fetch_and_install: {
      uint8_t* const buffer = task.buffer ? task.buffer->data() : state.fetched.data();
      if (fetch(job, task, buffer, state.number)) install(job, task, buffer, state);
      break;
    }
    case Step::fill:
      fill_stretch(job, task, state.fetched);
      break;
  }
}

bool Prefetcher::fetch(const Job& job, Task& task, uint8_t* buffer, uint32_t thread) {
  Measurements& measured = job.client->measurements();
  const auto start = Clock::now();
  measured.steps.reach(SessionStep::first_fetch, start);
  const bool good = job.source == Source::working_set     ? fetch_group(job, task, buffer)
                    : job.source == Source::memory_groups ? fetch_memory_group(job, task, buffer)
                                                          : fetch_block(job, task, buffer);
  if (task.fetched_bytes > 0) {
    Timeline::Span span{SpanKind::fetch, start, Clock::now()};
    span.bytes = task.fetched_bytes;
    span.waited = task.waited;
    span.thread = thread;
    measured.timeline.add(span);
    measured.prefetch.add_fetch({span.from, span.to}, span.bytes, span.waited);
  }
  if (task.is_shared) share_fetched(job, task, good);
  return good;
}

// True if both files still have the stamps of the fetched bytes, after a fetch as their servers
// report them. A write under a running VM is a
// failure, since a part of the guest has the old content; any other change voids the fetched bytes.
bool Prefetcher::check_stamps(const Job& job, Task& task, uint64_t offset) {
  const bool asks = task.step != Step::install;
  const auto stamp_now = [asks](const PageSource& file) {
    return asks ? file.refreshed_stamp() : file.current_stamp();
  };
  const FileStamp now = stamp_now(job.client->memory_file());
  const FileChange change = change_of(task.memory_stamp, now);
  if (change == FileChange::content && task.is_connected) {
    task.report.failure = changed_failure(offset);
    return false;
  }
  // For a running VM, bytes of the memory file are not fetched again after a change of status: if
  // it hid a write, the installed pages have the old content anyway.
  task.is_void =
      job.source == Source::working_set
          ? change != FileChange::none || stamp_now(job.proven->file) != job.proven->file.stamp()
          : change != FileChange::none && !task.is_connected;
  task.memory_stamp = now;
  return !task.is_void;
}

bool Prefetcher::fetch_group(const Job& job, Task& task, uint8_t* buffer) {
  const PlanGroup& group = job.plan->groups[task.unit];
  if (group.data_bytes == 0) return check_stamps(job, task, group.data_offset);
  const PageSource::Result read =
      job.proven->file.read_streaming(group.data_offset, buffer, group.data_bytes);
  // Checked first: after a rewrite of the set the checksum below fails although the memory file is
  // intact.
  if (!check_stamps(job, task, group.data_offset)) return false;
  Failure& failure = task.report.failure;
  if (read.read == PageSource::Read::failed) {
    failure = read_failure(ErrorCode::working_set_io, read, group.data_offset);
  } else if (read.read == PageSource::Read::cut_short) {
    failure = read_failure(ErrorCode::working_set_invalid, read, group.data_offset);
  } else {
    job.client->measurements().counters.add(Counter::bytes_read, group.data_bytes);
    task.fetched_bytes = group.data_bytes;
    task.waited = read.waited;
    const uint32_t checksum = crc32c(buffer, group.data_bytes);
    if (checksum == group.checksum) return true;
    failure.code = ErrorCode::working_set_invalid;
    failure.check = "group-checksum";
    failure.offset = group.data_offset;
    failure.want = group.checksum;
    failure.got = checksum;
  }
  return false;
}

// Fetches extents from all over the memory file. Cached pages are copied; from the first missing
// page on, readahead of all the rest is requested before the first blocking read: one read after
// the other took twice as long as the same reads with a full queue.
bool Prefetcher::fetch_memory_group(const Job& job, Task& task, uint8_t* buffer) {
  const PageSource& source = job.client->memory_file();
  const PlanGroup& group = job.memory_groups.groups[task.unit];
  const PlanExtent* extents = job.memory_groups.extents.data() + group.first_extent;
  const DataMap& data = source.data_map(task.memory_stamp);
  uint64_t bytes = 0;
  for (uint32_t i = 0; i < group.extent_count; ++i) {
    const uint64_t offset = extents[i].first_page * kPage;
    const uint64_t length = extents[i].page_count * kPage;
    task.holes[i] = data.hole_end(offset) >= offset + length;
    if (task.holes[i]) continue;
    PageSource::Result read{PageSource::Read::would_block};
    if (!task.waited) read = source.read_cached(offset, buffer + bytes, length);
    if (read.read == PageSource::Read::would_block) {
      for (uint32_t next = i; !task.waited && next < group.extent_count; ++next) {
        source.will_need(extents[next].first_page * kPage, extents[next].page_count * kPage);
      }
      task.waited = true;
      read = source.read(offset, buffer + bytes, length);
    }
    if (read.read != PageSource::Read::done) {
      task.report.failure = read_failure(ErrorCode::source_read, read, offset);
      return false;
    }
    bytes += length;
  }
  job.client->measurements().counters.add(Counter::bytes_read, bytes);
  task.fetched_bytes = bytes;
  return check_stamps(job, task, extents->first_page * kPage);
}

bool Prefetcher::fetch_block(const Job& job, Task& task, uint8_t* buffer) {
  const Block& block = job.blocks[task.unit];
  const PageSource& source = job.client->memory_file();
  const uint64_t hole_end = source.data_map(task.memory_stamp).hole_end(block.offset);
  task.holes[0] = hole_end >= block.offset + block.length;
  if (task.holes[0]) return check_stamps(job, task, block.offset);
  const PageSource::Result read = source.read_streaming(block.offset, buffer, block.length);
  if (read.read != PageSource::Read::done) {
    task.report.failure = read_failure(ErrorCode::source_read, read, block.offset);
    return false;
  }
  job.client->measurements().counters.add(Counter::bytes_read, block.length);
  task.fetched_bytes = block.length;
  task.waited = read.waited;
  return check_stamps(job, task, block.offset);
}

// Lays out fetched bytes as runs of guest memory, in address order within a group.
void Prefetcher::lay_out(const Job& job, Task& task, const uint8_t* buffer,
                         std::vector<Piece>* pieces) {
  pieces->clear();
  const auto add = [&](uint64_t offset, uint64_t length, bool zero) {
    pieces->push_back({offset, length, zero ? nullptr : buffer});
    if (zero) return;
    buffer += length;
    task.report.bytes += length;
  };
  if (job.source == Source::blocks) {
    const Block& block = job.blocks[task.unit];
    add(block.offset, block.length, task.holes[0]);
  } else {
    const Plan& layout = job.layout();
    const PlanGroup& group = layout.groups[task.unit];
    const PlanExtent* extent = layout.extents.data() + group.first_extent;
    for (uint32_t i = 0; i < group.extent_count; ++i, ++extent) {
      const bool zero =
          job.source == Source::memory_groups ? task.holes[i] : (extent->flags & kZeroExtent) != 0;
      add(extent->first_page * kPage, extent->page_count * kPage, zero);
    }
  }
  task.report.extents += pieces->size();
}

void Prefetcher::install(const Job& job, Task& task, const uint8_t* buffer, WorkerState& state) {
  PrefetchClient& client = *job.client;
  Measurements& measured = client.measurements();
  const bool samples = measured.prefetch.samples_install();
  const auto start = Clock::now();
  const auto cpu_start = samples ? cpu_time() : std::chrono::nanoseconds{};
  const uint64_t page_size = client.handler().memory().page_size();
  std::vector<Piece>& pieces = state.pieces;
  lay_out(job, task, buffer, &pieces);
  const std::function<void()> poll = [&] { client.poll_faults(state.serve); };

  client.begin_installs();
  uint64_t until_poll = 0;
  bool succeeded = true;
  for (size_t i = 0; succeeded && i < pieces.size(); ++i) {
    const Piece& piece = pieces[i];
    for (uint64_t done = 0; succeeded && done < piece.length;) {
      if (until_poll == 0) {
        poll();
        until_poll = kBytesBetweenPolls;
      }
      const uint64_t length = std::min(piece.length - done, std::max(page_size, until_poll));
      succeeded = install_run(job, task, piece.offset + done,
                              piece.bytes ? piece.bytes + done : nullptr, length, poll);
      done += length;
      until_poll -= std::min(until_poll, length);
    }
  }
  client.end_installs();
  std::optional<std::chrono::nanoseconds> on_core;
  if (samples) on_core = cpu_time() - cpu_start;
  Timeline::Span span{SpanKind::install, start, Clock::now()};
  for (const Piece& piece : pieces) span.bytes += piece.length;
  span.thread = state.number;
  measured.timeline.add(span);
  measured.prefetch.add_install(span.to - span.from, span.bytes, on_core);
}

// Returns false if the restore cannot continue. Pages that could not be installed are left to
// faults.
bool Prefetcher::install_run(const Job& job, Task& task, uint64_t offset, const uint8_t* bytes,
                             uint64_t length, const std::function<void()>& poll) {
  int error = 0;
  const auto install = [&] {
    task.filled = job.client->handler().fill(offset, bytes, length, FaultHandler::Purpose::prefetch,
                                             job.client->stopping(), &error);
    return task.filled != Filled::deferred;
  };
  while (!install()) {
    // A REMOVE is unread, possibly left to this thread, or its madvise() has not completed yet.
    poll();
    if (install() || task.pauses == kPendingRemovePauses) break;
    ++task.pauses;
    REAP_HOOK(before_remove_pause);
    std::this_thread::sleep_for(kPendingRemovePause);
  }
  if (task.filled == Filled::all || task.filled == Filled::deferred) return true;
  if (task.filled == Filled::failed || task.filled == Filled::no_memory) {
    task.report.failure = fill_failure("prefetch", task.filled, error, offset);
  }
  return false;
}

void Prefetcher::fill_stretch(const Job& job, Task& task, Mapping& buffer) {
  const PageSource& source = job.client->memory_file();
  const uint64_t page_size = job.client->handler().memory().page_size();
  const DataMap& data = source.data_map(job.client->handler().memory_stamp());
  uint64_t offset = task.unit;
  const uint64_t end = std::min(offset + kBufferBytes, source.bytes());
  task.filled = Filled::all;
  int error = 0;
  while (offset < end) {
    uint64_t length = end - offset;
    const uint8_t* bytes = nullptr;
    const uint64_t hole_end = data.hole_end(offset) / page_size * page_size;
    if (hole_end > offset) {
      length = std::min(length, hole_end - offset);
    } else {
      const uint64_t data_end = (data.data_end(offset) + page_size - 1) / page_size * page_size;
      length = std::min(length, std::max(data_end - offset, page_size));
      const PageSource::Result read = source.read(offset, buffer.data(), length);
      if (read.read != PageSource::Read::done) {
        task.report.failure = read_failure(ErrorCode::source_read, read, offset);
        task.filled = Filled::failed;
        return;
      }
      bytes = buffer.data();
      job.client->measurements().counters.add(Counter::bytes_read, length);
    }
    if (job.client->handler().memory_file_changed()) {
      task.report.failure = changed_failure(offset);
      task.filled = Filled::failed;
      return;
    }
    task.filled = job.client->handler().fill(offset, bytes, length, FaultHandler::Purpose::detach,
                                             job.client->stopping(), &error);
    if (task.filled != Filled::all) break;
    offset += length;
  }
  if (task.filled == Filled::deferred || task.filled == Filled::no_memory) {
    std::this_thread::sleep_for(kPendingRemovePause);
  }
  if (task.filled == Filled::failed || task.filled == Filled::no_memory) {
    task.report.failure = fill_failure("detach", task.filled, error, offset);
  }
}

}  // namespace reap
