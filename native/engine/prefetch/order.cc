// Scheduling: the next unit of the next job.

#include <algorithm>
#include <climits>

#include "base/page.h"
#include "prefetch/prefetcher.h"

namespace reap {

bool Prefetcher::next_of(Role role, Job& job, Task* task) {
  return role == Role::worker ? next_worker_task(job, task) : next_reader_task(job, task);
}

// Picks the next task. Running VMs are served oldest first: if they took turns, each would be
// incomplete until the end, and all its faults would be late. But jobs with the fewest threads go
// first, so that a hung disk holds only one. Jobs that wait for their VM take turns.
bool Prefetcher::next_task(Role role, Task* task) {
  unsigned min_busy = UINT_MAX;
  unsigned max_busy = 0;
  for (const auto& job : jobs_) {
    if (!job->connected) continue;
    min_busy = std::min(min_busy, job->busy);
    max_busy = std::max(max_busy, job->busy);
  }
  for (unsigned busy = min_busy; busy <= max_busy; ++busy) {
    for (const auto& job : jobs_) {
      if (job->connected && job->busy == busy && next_of(role, *job, task)) return true;
    }
  }
  for (auto it = jobs_.begin(); it != jobs_.end(); ++it) {
    if ((*it)->connected || !next_of(role, **it, task)) continue;
    jobs_.splice(jobs_.end(), jobs_, it);
    return true;
  }
  return false;
}

bool Prefetcher::has_units(Job& job) {
  while (job.next < job.units() && job.begun[job.next]) ++job.next;
  return job.next < job.units();
}

uint64_t Prefetcher::begin_unit(Job& job, uint64_t unit) {
  job.begun[unit] = true;
  return unit;
}

bool Prefetcher::unit_covers(const Job& job, uint64_t unit, uint64_t offset) {
  if (job.source == Source::blocks) {
    const Block& block = job.blocks[unit];
    return offset >= block.offset && offset - block.offset < block.length;
  }
  const Plan& layout = job.layout();
  const PlanGroup& group = layout.groups[unit];
  const auto first = layout.extents.begin() + group.first_extent;
  const uint64_t page = offset / kPage;
  auto extent =
      std::upper_bound(first, first + group.extent_count, page,
                       [](uint64_t at, const PlanExtent& one) { return at < one.first_page; });
  if (extent == first) return false;
  --extent;
  return page - extent->first_page < extent->page_count;
}

void Prefetcher::prioritize(PrefetchClient* client, uint64_t offset) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = std::find_if(jobs_.begin(), jobs_.end(), [client](const auto& job) {
    return job->client.get() == client && !job->filling;
  });
  if (found == jobs_.end() || (*found)->over || (*found)->replan) return;
  Job& job = **found;
  const auto is_it = [&](const ReadyUnit& fetched) {
    return unit_covers(job, fetched.unit, offset);
  };
  const auto ready = std::find_if(job.ready.begin(), job.ready.end(), is_it);
  if (ready != job.ready.end()) {
    std::rotate(job.ready.begin(), ready, ready + 1);
    return;
  }
  for (uint64_t unit = job.next; unit < job.units(); ++unit) {
    if (!unit_covers(job, unit, offset)) continue;
    if (!job.begun[unit]) job.wanted.push_back(begin_unit(job, unit));
    changed_.notify_one();
    return;
  }
}

}  // namespace reap
