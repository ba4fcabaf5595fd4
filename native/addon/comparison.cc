// Node-API only: comparisons of working sets with memory files. The other side is
// src/binding/addon.ts.
#include "working_set/comparison.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <utility>

#include "addon/working_set.h"
#include "base/thread.h"
#include "base/thread_group.h"

namespace reap {

namespace {

// Lowers the thread to idle priority for the CPU and for the disk (if the disk's scheduler has
// classes). Neither needs a privilege; a refusal is ignored.
void take_lowest_priority() {
  constexpr int kIoprioWhoProcess = 1;  // with id 0, the calling thread (ioprio_set(2))
  constexpr int kIoprioIdle = 3 << 13;
  const sched_param none{};
  ::sched_setscheduler(0, SCHED_IDLE, &none);
  ::syscall(SYS_ioprio_set, kIoprioWhoProcess, 0, kIoprioIdle);
}

constexpr auto kMaxWait = std::chrono::seconds(2);

// One comparison on a separate thread, from its start to its completion event.
class ComparisonJob {
 public:
  using Stop = std::atomic<bool>;

  ComparisonJob(Napi::Env env, std::shared_ptr<const WorkingSet> set, bool background,
                Napi::Value on_progress)
      : set_(std::move(set)), background_(background), deferred_(env) {
    if (on_progress.IsFunction()) on_progress_ = Napi::Persistent(on_progress.As<Napi::Function>());
  }

  // Returns 0 or a negative errno.
  int open(int working_set, int memory_file) {
    const int error = working_set_.adopt(copy_of(working_set));
    return error != 0 ? error : memory_file_.adopt(copy_of(memory_file));
  }

  bool fits() const { return set_->header.memory_bytes == memory_file_.bytes(); }

  // The job owns itself from here on. Returns 0 or a negative errno.
  int start(Napi::Env env) {
    events_ = Events::New(env, "reap-trace", 0, 1, this);
    if (const int error = thread_.start([this] { work(); })) {
      events_.Release();
      deferred_.resolve(env.Undefined());
      return error;
    }
    napi_add_env_cleanup_hook(env, end, this);
    return 0;
  }

  const std::shared_ptr<Stop>& stop() const { return stop_; }
  Napi::Value promise() const { return deferred_.promise(); }

 private:
  struct Event {
    uint64_t pages;
    bool is_end;
  };

  static UniqueFd copy_of(int fd) { return UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

  // The JavaScript thread waits for this one and shares a lock with it, so this thread keeps its
  // normal priority: an idle one could block both on a busy machine.
  void work() {
    pthread_setname_np(pthread_self(), "reap-compare");
    if (background_) {
      Thread idle;
      const int error = idle.start([this] {
        take_lowest_priority();
        compare_files();
      });
      if (error != 0) result_.failure = no_thread(error);
    } else {
      compare_files();
    }
    // Close descriptors before the completion event: listeners may count open ones.
    working_set_ = PageSource();
    memory_file_ = PageSource();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!is_left_) {
        tell({result_.pages, true});
        return;
      }
    }
    delete this;
  }

  void compare_files() {
    memory_file_.find_holes();
    compare(
        set_->plan, working_set_, memory_file_, *stop_,
        [this](uint64_t pages) { tell_progress(pages); }, &result_);
  }

  void tell_progress(uint64_t pages) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (on_progress_ && !is_left_) tell({pages, false});
  }

  void tell(Event event) {
    auto* owned = new Event(event);
    if (events_.NonBlockingCall(owned) != napi_ok) delete owned;
  }

  static void deliver(Napi::Env env, Napi::Function, ComparisonJob* self, Event* event) {
    const std::unique_ptr<Event> owned(event);
    if (event->is_end) {
      const std::unique_ptr<ComparisonJob> ended(self);
      self->thread_.wait_for_end();
      if (env == nullptr) return;  // the environment is being torn down
      napi_remove_env_cleanup_hook(env, end, self);
      self->events_.Release();
      self->resolve(env);
    } else if (env != nullptr) {
      self->on_progress_.Call({Napi::Number::New(env, static_cast<double>(event->pages))});
    }
  }
  using Events = Napi::TypedThreadSafeFunction<ComparisonJob, Event, &ComparisonJob::deliver>;

  void resolve(Napi::Env env) {
    Napi::Uint32Array mismatches = Napi::Uint32Array::New(env, result_.mismatches.size());
    fill(mismatches, result_.mismatches.data());
    Napi::Array result = Napi::Array::New(env, 4);
    result[0U] = static_cast<double>(result_.pages);
    result[1U] = static_cast<double>(result_.mismatched_pages);
    result[2U] = mismatches;
    result[3U] = to_js(env, result_.failure);
    deferred_.resolve(result);
  }

  // Cleanup hooks run last in, first out: this one before the one that deletes the function called
  // by the thread. A thread whose storage hangs is left behind, and the job is then its own.
  static void end(void* data) {
    auto* self = static_cast<ComparisonJob*>(data);
    *self->stop_ = true;
    if (self->thread_.wait_for_end(kMaxWait)) return;
    const std::lock_guard<std::mutex> lock(self->mutex_);
    self->is_left_ = true;
    self->on_progress_.Reset();
  }

  const std::shared_ptr<const WorkingSet> set_;
  const bool background_;
  const std::shared_ptr<Stop> stop_ = std::make_shared<Stop>(false);
  PageSource working_set_;
  PageSource memory_file_;
  Comparison result_;
  Deferred deferred_;
  Napi::FunctionReference on_progress_;
  Events events_;
  const ThreadGroup thread_;
  std::mutex mutex_;  // guards what follows
  bool is_left_ = false;
};

// compare(workingSet: fd, memoryFile: fd, set, background, onProgress | undefined)
//   => failure | [stop, Promise<[pages, mismatchedPages, mismatches: Uint32Array, failure | null]>]
Napi::Value start_comparison(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const std::shared_ptr<const WorkingSet> set = working_set_of(info[2]);
  if (!set) return env.Undefined();
  auto job = std::make_unique<ComparisonJob>(env, set, info[3].As<Napi::Boolean>(), info[4]);
  int error =
      job->open(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::Number>().Int32Value());
  if (error == 0 && !job->fits()) error = -EINVAL;
  const std::shared_ptr<ComparisonJob::Stop> stop = job->stop();
  const Napi::Value promise = job->promise();
  if (error != 0) return to_js(env, failed_call(ErrorCode::working_set_io, error, "fstat"));
  error = job->start(env);
  if (error != 0) return to_js(env, no_thread(error));
  job.release();
  Napi::Array result = Napi::Array::New(env, 2);
  result[0U] = Napi::Function::New(env, [stop](const Napi::CallbackInfo&) { *stop = true; });
  result[1U] = promise;
  return result;
}

}  // namespace

void add_comparison(Napi::Env env, Napi::Object exports) {
  exports["compare"] = Napi::Function::New(env, start_comparison);
}

}  // namespace reap
