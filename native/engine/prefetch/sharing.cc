// Sharing between concurrent restores of one working set: a group that one of them has fetched is
// installed by all.
#include <algorithm>

#include "prefetch/prefetcher.h"

namespace reap {

using State = SharedGroups::State;

// The job is not in jobs_ yet.
void Prefetcher::join_shared(Job& job) {
  if (!job.proven) return;
  const FileStamp& set = job.proven->file.stamp();
  for (const auto& other : jobs_) {
    if (!other->shared) continue;
    if (other->shared != job.shared && !other->shared->are_of(*job.plan, set)) continue;
    job.shared = other->shared;
    job.last_fetch_blocked = job.last_fetch_blocked || other->last_fetch_blocked;
    if (other->source != Source::working_set) continue;
    // The other job may have been alone until now.
    for (const ReadyUnit& fetched : other->ready) job.shared->give(fetched.unit, fetched.buffer);
  }
  if (!job.shared) job.shared = std::make_shared<SharedGroups>(*job.plan, set);
}

// The last restore of a set frees its groups.
void Prefetcher::leave_shared(Job& job) {
  if (!job.shared) return;
  const bool is_last = job.shared.use_count() == 1;
  while (Buffer buffer = is_last ? job.shared->take_free() : nullptr) recycle(std::move(buffer));
  job.shared.reset();
}

// True if other restores should share this job's reads. Groups in the page cache are not shared:
// each restore copies them faster itself, into a buffer in its core's cache.
bool Prefetcher::reads_shared(const Job& job) {
  return job.source == Source::working_set && job.last_fetch_blocked && job.shared.use_count() > 1;
}

// First unit in this state that the job has not begun.
std::optional<uint64_t> Prefetcher::find_unit(const Job& job, State state) {
  const auto now = SharedGroups::Clock::now();
  for (uint64_t unit = job.next; unit < job.units(); ++unit) {
    if (!job.begun[unit] && job.shared->state_of(unit, now) == state) return unit;
  }
  return std::nullopt;
}

std::optional<uint64_t> Prefetcher::next_to_fetch(const Job& job) {
  return reads_shared(job) ? find_unit(job, State::absent) : job.next;
}

// Present groups come first. Groups that others are reading are waited for.
std::optional<uint64_t> Prefetcher::next_to_install(const Job& job) {
  // Includes groups of restores that have ended meanwhile.
  if (job.source == Source::working_set && job.shared && job.shared->any_present()) {
    if (const auto unit = find_unit(job, State::present)) return unit;
  }
  return next_to_fetch(job);
}

// Announces to the other restores that this job reads the unit.
bool Prefetcher::begin_shared(Job& job, uint64_t unit) {
  if (!reads_shared(job) || job.shared->state_of(unit) != State::absent) return false;
  job.shared->begin(unit);
  return true;
}

// Called after the fetch and before the install, so that others do not wait for this VM.
void Prefetcher::share_fetched(const Job& job, const Task& task, bool good) {
  const std::lock_guard<std::mutex> lock(mutex_);
  job.shared->end(task.unit, good ? task.buffer : nullptr);
  changed_.notify_all();
}

// Number of units fetched ahead by a job and by those that share with it.
size_t Prefetcher::ahead_count(const Job& job) const {
  if (!reads_shared(job)) return job.ready.size() + job.fetching;
  size_t count = 0;
  for (const auto& other : jobs_) {
    if (other->shared == job.shared) count += other->ready.size() + other->fetching;
  }
  return count;
}

Buffer Prefetcher::take_buffer() {
  if (Buffer buffer = BufferPool::shared().take()) return buffer;
  // A search without result is repeated only after an owner has released a buffer.
  const SharedGroups* last = nullptr;
  for (auto job = jobs_.begin(); shared_may_be_free_ && job != jobs_.end(); ++job) {
    if (!(*job)->shared || (*job)->shared.get() == last) continue;
    last = (*job)->shared.get();
    if (Buffer buffer = (*job)->shared->take_free()) return buffer;
  }
  shared_may_be_free_ = false;
  // A prefetcher of another JavaScript thread does not report that it has returned one.
  waits_for_others_ = true;
  return nullptr;
}

}  // namespace reap
