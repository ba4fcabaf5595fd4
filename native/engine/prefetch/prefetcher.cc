#include "prefetch/prefetcher.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/page.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;
using Filled = FaultHandler::Filled;

// A restore's maximum share of the pool's buffers after its VM has connected, or while its reads do
// not block: enough for a disk with uneven latency. A buffer costs most at its first use.
constexpr size_t kMaxAhead = 8;
constexpr auto kNoMemoryTimeout = std::chrono::seconds(2);

}  // namespace

void Prefetcher::start(std::shared_ptr<PrefetchClient> client, std::shared_ptr<const Plan> plan,
                       std::shared_ptr<const ProvenFile> proven) {
  auto job = std::make_unique<Job>();
  job->client = std::move(client);
  job->plan = std::move(plan);
  job->page_size = job->plan->page_size;
  job->memory_stamp = job->client->memory_file().stamp();
  if (proven && proven->memory_file == job->memory_stamp) job->proven = std::move(proven);
  job->proof_is_void = !job->proven;
  // A write() that began before this also leaves no trace in the stamp while it is in progress.
  const bool has_writers = job->client->memory_file().writers() == Writers::some;
  job->waits_for_handshake = !is_settled(job->memory_stamp[4], has_writers ? kMaxWrite : 0);
  std::lock_guard<std::mutex> lock(mutex_);
  join_shared(*job);
  jobs_.push_back(std::move(job));
  changed_.notify_all();
}

void Prefetcher::connected(PrefetchClient* client) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& job : jobs_) {
    if (job->client.get() != client || job->filling) continue;
    const uint64_t page_size = client->handler().memory().page_size();
    job->replan = job->replan || page_size != job->page_size;
    job->page_size = page_size;
    // Nothing is installed yet, so the state that the VMM found is the one to use. Test: "a memory
    // file that changes before the handshake is fetched again".
    if (client->handler().memory_stamp() != job->memory_stamp) {
      job->memory_stamp = client->handler().memory_stamp();
      job->proof_is_void = true;
      job->replan = true;
    }
    job->connected = true;
    job->waits_for_handshake = false;
  }
  changed_.notify_all();
}

void Prefetcher::fill(std::shared_ptr<PrefetchClient> client) {
  auto job = std::make_unique<Job>();
  job->client = std::move(client);
  job->filling = true;
  job->connected = true;
  job->short_of_memory_since = Clock::now();
  std::lock_guard<std::mutex> lock(mutex_);
  jobs_.push_back(std::move(job));
  changed_.notify_all();
}

void Prefetcher::cancel(PrefetchClient* client) {
  std::unique_lock<std::mutex> lock(mutex_);
  std::vector<std::unique_ptr<Job>> gone;  // destroyed without the lock: this may be the last owner
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    auto next = std::next(it);
    if ((*it)->client.get() == client) {
      (*it)->over = (*it)->cancelled = true;
      if ((*it)->busy == 0) {
        for (ReadyUnit& fetched : (*it)->ready) recycle(std::move(fetched.buffer));
        leave_shared(**it);
        gone.push_back(std::move(*it));
        jobs_.erase(it);
      }
    }
    it = next;
  }
  lock.unlock();
}

void Prefetcher::recycle(Buffer&& buffer) {
  buffer.reset();
  ++recycled_;
  shared_may_be_free_ = true;
  changed_.notify_one();
  readers_changed_.notify_one();
}

bool Prefetcher::next_worker_task(Job& job, Task* task) {
  task->job = &job;
  // A failure before the handshake is reported after it.
  if (job.over) return job.busy == 0 && (job.connected || job.cancelled);
  if (job.filling) {
    if (job.busy > 0) return false;
    task->step = Step::fill;
    task->unit = job.next;
    return true;
  }
  if (job.replan) {
    if (job.busy > 0) return false;
    replan(job);
  }
  if (job.connected && !job.wanted.empty() && job.stuck == 0) {
    const uint64_t unit = job.wanted.front();
    job.wanted.pop_front();
    take_unit(job, unit, task);
    return true;
  }
  if (job.connected && !job.ready.empty()) {
    task->step = Step::install;
    task->unit = job.ready.front().unit;
    task->buffer = std::move(job.ready.front().buffer);
    task->holes = job.ready.front().holes;
    task->memory_stamp = job.memory_stamp;
    task->is_connected = true;
    job.ready.pop_front();
    readers_changed_.notify_one();
    return true;
  }
  if (job.stuck > 0) return false;
  if (!has_units(job)) {
    // An empty working set has nothing to do.
    job.over = job.connected && job.installed == job.units();
    return job.over && job.busy == 0;
  }
  if (!job.connected) return fetch_ahead(job, task);
  const std::optional<uint64_t> unit = next_to_install(job);
  waits_for_others_ = waits_for_others_ || !unit;
  if (unit) take_unit(job, begin_unit(job, *unit), task);
  return unit.has_value();
}

// Assigns a unit of a running VM.
void Prefetcher::take_unit(Job& job, uint64_t unit, Task* task) {
  task->unit = unit;
  task->memory_stamp = job.memory_stamp;
  task->is_connected = true;
  task->step = Step::fetch_and_install;
  if (job.source != Source::working_set || !job.shared) return;
  if ((task->buffer = job.shared->data_of(unit))) {
    task->step = Step::install;
  } else if (reads_shared(job) && job.shared->state_of(unit) == SharedGroups::State::absent &&
             (task->buffer = take_buffer())) {
    task->is_shared = begin_shared(job, unit);
  }
}

// Rebuilds the units and restarts at the first one; installed pages are skipped.
void Prefetcher::replan(Job& job) {
  for (ReadyUnit& fetched : job.ready) recycle(std::move(fetched.buffer));
  job.ready.clear();
  job.next = job.installed = 0;
  job.memory_groups = Plan();
  job.blocks.clear();
  if (job.proof_is_void) job.proven.reset();
  if (job.page_size != kPage) {
    job.source = Source::blocks;
    job.blocks = blocks_of(*job.plan, job.page_size, job.client->memory_file().bytes());
  } else if (job.proven) {
    job.source = Source::working_set;
  } else {
    job.source = Source::memory_groups;
    job.memory_groups = memory_groups_of(*job.plan);
  }
  job.begun.assign(job.units(), false);
  job.wanted.clear();
  job.replan = false;
  changed_.notify_all();
  readers_changed_.notify_all();
}

// Task of a reader: keeps the disk busy while the workers install.
bool Prefetcher::next_reader_task(Job& job, Task* task) {
  if (job.over || job.filling || job.replan || job.stuck > 0 || !job.last_fetch_blocked ||
      !has_units(job)) {
    return false;
  }
  return fetch_ahead(job, task);
}

bool Prefetcher::fetch_ahead(Job& job, Task* task) {
  if (job.waits_for_handshake) return false;
  const bool has_enough = ahead_count(job) >= kMaxAhead;
  if (has_enough && (job.connected || !job.last_fetch_blocked || reads_shared(job))) return false;
  const std::optional<uint64_t> unit = next_to_fetch(job);
  if (!unit || !(task->buffer = take_buffer())) return false;
  task->job = &job;
  task->step = Step::fetch_ahead;
  task->unit = begin_unit(job, *unit);
  task->is_shared = begin_shared(job, *unit);
  task->memory_stamp = job.memory_stamp;
  task->is_connected = job.connected;
  ++job.fetching;
  return true;
}

// Merges the outcome of a task into its job. The mutex is held.
void Prefetcher::settle(Task& task) {
  Job& job = *task.job;
  job.report.bytes += task.report.bytes;
  job.report.extents += task.report.extents;
  if (task.step == Step::fill) {
    settle_fill(job, task);
    return;
  }
  if (task.report.failure && !job.report.failure) job.report.failure = task.report.failure;

  if (task.step == Step::fetch_ahead) --job.fetching;
  if (task.fetched_bytes > 0) {
    job.last_fetch_blocked = task.waited;
    if (job.last_fetch_blocked) readers_changed_.notify_all();
  }
  if (task.is_void) {
    // A write() in progress has already set the times: further reads may see half of it, and no
    // stamp shows that. Before the handshake there is time to wait until it is over. Test: "a
    // memory file that changes before the handshake is no longer fetched ahead of it".
    job.waits_for_handshake = !job.connected;
    job.proof_is_void = true;
    job.replan = true;
  }
  if (task.is_connected) job.memory_stamp = task.memory_stamp;
  const bool vm_gone = task.filled == Filled::gone || task.filled == Filled::stopped;
  job.vm_gone = job.vm_gone || vm_gone;
  job.over = job.over || vm_gone || job.report.failure;
  if (task.step == Step::fetch_ahead && !job.over && !job.replan) {
    if (reads_shared(job)) job.shared->give(task.unit, task.buffer);
    // Two workers may finish out of order.
    auto after = std::find_if(job.ready.begin(), job.ready.end(),
                              [&](const ReadyUnit& other) { return other.unit > task.unit; });
    job.ready.insert(after, ReadyUnit{task.unit, std::move(task.buffer), task.holes});
    changed_.notify_one();
    return;
  }
  if (task.buffer) recycle(std::move(task.buffer));
  if (task.step != Step::fetch_ahead) ++job.installed;
  job.over = job.over || (job.connected && !job.replan && job.installed == job.units());
}

void Prefetcher::settle_fill(Job& job, const Task& task) {
  job.filled = task.filled;
  const auto now = Clock::now();
  if (task.filled != Filled::no_memory) job.short_of_memory_since = now;
  switch (task.filled) {
    case Filled::all:
      job.next += kBufferBytes;
      if (job.next >= job.client->memory_file().bytes()) job.over = true;
      return;
    case Filled::deferred:
      return;
    case Filled::no_memory:
      if (now - job.short_of_memory_since < kNoMemoryTimeout) return;
      break;
    case Filled::stopped:
    case Filled::gone:
    case Filled::failed:
      break;
  }
  job.report.failure = task.report.failure;
  job.over = true;
}

void Prefetcher::end_if_over(Job* job, std::unique_lock<std::mutex>& lock) {
  if (!job->over || job->busy > 0) return;
  for (ReadyUnit& fetched : job->ready) recycle(std::move(fetched.buffer));
  job->ready.clear();
  if (!job->connected && !job->cancelled) return;
  auto it = std::find_if(jobs_.begin(), jobs_.end(),
                         [job](const std::unique_ptr<Job>& other) { return other.get() == job; });
  if (it == jobs_.end()) return;
  std::unique_ptr<Job> owned = std::move(*it);
  jobs_.erase(it);
  leave_shared(*owned);
  lock.unlock();
  if (!owned->cancelled && !owned->vm_gone) {
    PrefetchClient& client = *owned->client;
    if (owned->filling) {
      client.on_filled(owned->filled, owned->report.failure);
    } else {
      owned->report.from_working_set = owned->source == Source::working_set;
      owned->report.pages = client.measurements().counters.get(Counter::prefetched);
      owned->report.since_connect_us = client.handler().microseconds_since_connect();
      client.handler().end_prefetch();
      client.on_prefetched(owned->report);
    }
  }
  owned.reset();  // possibly the client's last owner
  lock.lock();
}

}  // namespace reap
