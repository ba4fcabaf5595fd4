// The threads of a prefetcher, and what becomes of one whose storage hangs.
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "base/test_hooks.h"
#include "base/thread.h"
#include "prefetch/prefetcher.h"

namespace reap {

namespace {

using Clock = std::chrono::steady_clock;

// Within a fetch or an install, a thread waits for a few milliseconds at most.
constexpr auto kStuck = std::chrono::milliseconds(50);
constexpr size_t kMaxThreads = 96;
// A third of the weight of other threads. With less, a restore beside endless loops takes several
// times as long.
constexpr int kNiceness = 5;
// For what another restore reads or holds, and until an idle thread returns its memory.
constexpr auto kMaxWait = std::max(SharedGroups::kMaxWait, BufferPool::kIdle);

}  // namespace

Prefetcher::Prefetcher(unsigned workers, unsigned readers, ThreadGroup threads,
                       std::function<void()> watch)
    : watch_(std::move(watch)), threads_(std::move(threads)) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (unsigned i = 0; error_ == 0 && i < workers + readers; ++i) {
    error_ = start_thread(i < workers ? Role::worker : Role::reader);
  }
}

Prefetcher::~Prefetcher() {
  stop();
  threads_.wait_for_end();
}

void Prefetcher::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  readers_changed_.notify_all();
}

// Returns 0 or a negative errno. The mutex is held.
int Prefetcher::start_thread(Role role) {
  const auto self = running_.insert(running_.end(), Thread{role});
  self->number = started_++;
  const int error = threads_.start([this, self] {
    work(*self);
    const std::lock_guard<std::mutex> lock(mutex_);
    running_.erase(self);
  });
  if (error != 0) running_.erase(self);
  return error;
}

void Prefetcher::replace_stuck_threads() {
  // Called and released without the lock.
  std::vector<std::pair<std::shared_ptr<PrefetchClient>, bool>> hung;
  std::unique_lock<std::mutex> lock(mutex_);
  is_watched_ = false;
  if (stopping_) return;
  const auto now = Clock::now();
  for (Thread& thread : running_) {
    if (!thread.job || thread.job->cancelled) continue;
    const auto limit = thread.job->client->read_timeout();
    const bool is_limited = limit.count() > 0 && !thread.is_hung;
    if (thread.is_replaced && !is_limited) continue;
    is_watched_ = true;
    const bool is_over_limit = is_limited && now - thread.waits_since >= limit;
    // A look takes a few microseconds, and many threads may hang.
    if ((is_over_limit || !thread.is_replaced) && is_runnable(thread.id)) {
      thread.waits_since = now;
      continue;
    }
    if (is_over_limit) {
      const Job& job = *thread.job;
      thread.is_hung = true;
      hung.emplace_back(job.client, !job.filling && job.source == Source::working_set);
    }
    if (thread.is_replaced || now - thread.waits_since < kStuck || running_.size() >= kMaxThreads ||
        start_thread(thread.role) != 0) {
      continue;
    }
    thread.is_replaced = true;
    ++thread.job->stuck;
    if (thread.role == Role::worker) busy_workers_.fetch_sub(1, std::memory_order_relaxed);
  }
  if (is_watched_) watch_();
  lock.unlock();
  for (const auto& [client, is_of_working_set] : hung) client->on_hung_read(is_of_working_set);
}

// The mutex is held.
void Prefetcher::begin_task(Thread& self, Job& job) {
  ++job.busy;
  self.job = &job;
  self.waits_since = Clock::now();
  self.is_hung = false;
  if (self.role == Role::worker) busy_workers_.fetch_add(1, std::memory_order_relaxed);
  if (!is_watched_ && watch_) watch_();
  is_watched_ = true;
}

void Prefetcher::end_task(Thread& self) {
  Job& job = *std::exchange(self.job, nullptr);
  --job.busy;
  if (self.is_replaced) {
    --job.stuck;
    changed_.notify_all();
    readers_changed_.notify_all();
  } else if (self.role == Role::worker) {
    busy_workers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Prefetcher::work(Thread& self) {
  const Role role = self.role;
  pthread_setname_np(pthread_self(), role == Role::worker ? "reap-fetch" : "reap-read-ahead");
  // A batch thread does not preempt others when it wakes (sched(7)). A normal one takes the core of
  // the JavaScript thread that starts the restore for a time slice: a third of serve().
  const sched_param none{};
  if (sched_getscheduler(0) == SCHED_OTHER) sched_setscheduler(0, SCHED_BATCH, &none);
  // A guest, or a demand thread, that wakes gets the core at once only from a thread of less
  // weight: of the same weight, one finishes its slice first (EEVDF, since 6.6). Errors only cost
  // time.
  ::setpriority(PRIO_PROCESS, 0, ::getpriority(PRIO_PROCESS, 0) + kNiceness);
  std::condition_variable& changed = role == Role::worker ? changed_ : readers_changed_;
  WorkerState state;
  state.fetched = Mapping::buffer(kBufferBytes);

  std::unique_lock<std::mutex> lock(mutex_);
  self.id = ::gettid();
  state.number = self.number;
  bool is_idle = false;  // has returned its memory
  for (;;) {
    Task task;
    // Not wait(): gcc 12 binds it to a symbol that the libstdc++ of RHEL 9 lacks. Not wait_for():
    // the thread sanitizer of gcc 12 does not know the clock that it uses.
    while (!stopping_ && !next_task(role, &task)) {
      const bool is_last_wait = is_idle && !std::exchange(waits_for_others_, false);
      const std::chrono::seconds limit = is_last_wait ? std::chrono::hours(1) : kMaxWait;
      const auto until = std::chrono::system_clock::now() + limit;
      const uint64_t recycled = recycled_;
      const std::cv_status woken = changed.wait_until(lock, until);
      if (woken == std::cv_status::timeout && !is_idle) {
        lock.unlock();
        is_idle = state.release_pages();
        REAP_HOOK(after_release);
        lock.lock();
      }
      // A thread whose wait ends as a buffer is returned, or that has no lock then, is not
      // notified.
      is_idle = is_idle && recycled_ == recycled;
    }
    is_idle = false;
    if (stopping_) return;
    Job* job = task.job;
    if (!job->over) {
      begin_task(self, *job);
      lock.unlock();
      perform(task, state);
      lock.lock();
      end_task(self);
      settle(task);
    }
    end_if_over(job, lock);
    if (self.is_replaced) return;
  }
}

}  // namespace reap
