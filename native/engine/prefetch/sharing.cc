// What restores of one working set have of each other: a group that one of them has fetched is
// installed by all.
#include <algorithm>

#include "prefetch/prefetcher.h"

namespace reap {

using State = SharedGroups::State;

// For a job that is not in jobs_ yet.
void Prefetcher::join_others(Job& job) {
  if (!job.proven) return;
  const FileStamp& set = job.proven->file.stamp();
  for (const auto& other : jobs_) {
    if (!other->shared) continue;
    if (other->shared != job.shared && !other->shared->are_of(*job.plan, set)) continue;
    job.shared = other->shared;
    job.waits = job.waits || other->waits;
    if (other->source != Source::working_set) continue;
    // It may have been alone until now.
    for (const Fetched& fetched : other->ready) job.shared->give(fetched.unit, fetched.buffer);
  }
  if (!job.shared) job.shared = std::make_shared<SharedGroups>(*job.plan, set);
}

// The groups of a set go with the last restore of it.
void Prefetcher::leave_others(Job& job) {
  if (!job.shared) return;
  const bool is_last = job.shared.use_count() == 1;
  while (Buffer buffer = is_last ? job.shared->take_free() : nullptr) recycle(std::move(buffer));
  job.shared.reset();
}

// Whether to read for other restores as well. What the page cache has, each copies faster itself,
// into a buffer that its core's cache has.
bool Prefetcher::reads_for_others(const Job& job) {
  return job.source == Source::working_set && job.waits && job.shared.use_count() > 1;
}

// The first unit in this state that the job has not begun.
std::optional<uint64_t> Prefetcher::find_unit(const Job& job, State state) {
  const auto now = SharedGroups::Clock::now();
  for (uint64_t unit = job.next; unit < job.units(); ++unit) {
    if (!job.begun[unit] && job.shared->state_of(unit, now) == state) return unit;
  }
  return std::nullopt;
}

std::optional<uint64_t> Prefetcher::next_to_fetch(const Job& job) {
  return reads_for_others(job) ? find_unit(job, State::absent) : job.next;
}

// What is at hand comes first. What others read is waited for.
std::optional<uint64_t> Prefetcher::next_to_install(const Job& job) {
  // Also what others left that were here before.
  if (job.source == Source::working_set && job.shared && job.shared->has_any()) {
    if (const auto unit = find_unit(job, State::there)) return unit;
  }
  return next_to_fetch(job);
}

// Announces that a unit is read for all of them.
bool Prefetcher::begin_shared(Job& job, uint64_t unit) {
  if (!reads_for_others(job) || job.shared->state_of(unit) != State::absent) return false;
  job.shared->begin(unit);
  return true;
}

// The fetch is over. Before the install: others do not wait for this VM.
void Prefetcher::share_fetched(const Job& job, const Task& task, bool good) {
  const std::lock_guard<std::mutex> lock(mutex_);
  job.shared->end(task.unit, good ? task.buffer : nullptr);
  changed_.notify_all();
}

// Groups that are fetched for later, by a job and by those that share with it.
size_t Prefetcher::fetched_ahead(const Job& job) const {
  if (!reads_for_others(job)) return job.ready.size() + job.fetching;
  size_t count = 0;
  for (const auto& other : jobs_) {
    if (other->shared == job.shared) count += other->ready.size() + other->fetching;
  }
  return count;
}

Prefetcher::Buffer Prefetcher::take_buffer() {
  if (!pool_.empty()) {
    Buffer buffer = std::make_shared<Mapping>(std::move(pool_.back()));
    pool_.pop_back();
    return buffer;
  }
  // Looked for once, until an owner has let go of one.
  const SharedGroups* last = nullptr;
  for (auto job = jobs_.begin(); may_be_free_ && job != jobs_.end(); ++job) {
    if (!(*job)->shared || (*job)->shared.get() == last) continue;
    last = (*job)->shared.get();
    if (Buffer buffer = (*job)->shared->take_free()) return buffer;
  }
  may_be_free_ = false;
  return nullptr;
}

}  // namespace reap
