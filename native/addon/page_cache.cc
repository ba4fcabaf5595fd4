// Node-API only: the page cache's part of the seam. The other side is src/binding/addon.ts.
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "addon/task.h"
#include "addon/working_set.h"
#include "page_cache/prefetcher.h"
#include "page_cache/read_cost.h"
#include "page_cache/recorder.h"

namespace reap {

namespace {

constexpr napi_type_tag kRecorderTag = {0x51c7a90e2f6b4d83, 0xb04e8d17c9a3f265};

Napi::Float64Array numbers(Napi::Env env, std::initializer_list<double> values) {
  Napi::Float64Array array = Napi::Float64Array::New(env, values.size());
  fill(array, values.begin());
  return array;
}

// The paths of an array that is not empty. Empty in a worker thread that is being terminated, where
// Node-API reads no array, or stops to read it: node-addon-api then has a value without an
// environment, and ends the process at its next call. Test: "a worker thread that is terminated
// leaves no file open".
std::vector<std::string> paths_of(Napi::Value value) {
  const napi_env env = value.Env();
  std::vector<std::string> found(value.As<Napi::Array>().Length());
  for (uint32_t i = 0; i < found.size(); ++i) {
    napi_value path = nullptr;
    size_t length = 0;
    if (napi_get_element(env, value, i, &path) != napi_ok ||
        napi_get_value_string_utf8(env, path, nullptr, 0, &length) != napi_ok) {
      return {};
    }
    found[i].resize(length);
    // Its end is one byte longer, and the string has room for it.
    if (napi_get_value_string_utf8(env, path, found[i].data(), length + 1, nullptr) != napi_ok) {
      return {};
    }
  }
  return found;
}

// Prefetchers of the whole process, one per disk, so that a hung disk does not delay the others:
// JavaScript worker threads share a disk's queue as they share the disk. Called on any JavaScript
// thread.
PageCachePrefetcher& prefetcher_of(uint64_t device) {
  static std::mutex mutex;
  static auto* all = new std::map<uint64_t, std::unique_ptr<PageCachePrefetcher>>;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& prefetcher = (*all)[device];
  if (!prefetcher) prefetcher = std::make_unique<PageCachePrefetcher>();
  return *prefetcher;
}

constexpr auto kMaxWait = std::chrono::seconds(2);

// One prefetch, from its start to its completion event.
struct Prefetch {
  // Shared with the prefetcher's thread.
  struct Link {
    std::mutex mutex;  // guards what follows
    bool is_closed = false;
    bool is_done = false;
  };

  Prefetch(Napi::Env env, uint64_t device_) : device(device_), deferred(env) {}

  static double milliseconds_of(std::chrono::steady_clock::time_point at) {
    return std::chrono::duration<double, std::milli>(at.time_since_epoch()).count();
  }

  static void deliver(Napi::Env env, Napi::Function, Prefetch* self, PageCacheReport* report) {
    const std::unique_ptr<PageCacheReport> owned(report);
    const std::unique_ptr<Prefetch> ended(self);
    if (env == nullptr) return;  // the environment is being torn down
    napi_remove_env_cleanup_hook(env, end, self);
    // Not released on the prefetcher's thread: after its call the environment may be gone.
    self->event.Release();
    const PageCacheReport& r = *report;
    const auto number = [](uint64_t value) { return static_cast<double>(value); };
    Napi::Array result = Napi::Array::New(env, 2);
    result[0U] =
        numbers(env, {number(r.pages), number(r.resident), number(r.fetched_pages),
                      number(r.extents), number(r.submitted_us), number(r.completed_us),
                      r.in_budget ? 1.0 : 0.0, number(r.file), milliseconds_of(r.started)});
    result[1U] = to_js(env, r.failure);
    self->deferred.resolve(result);
  }
  using Event = Napi::TypedThreadSafeFunction<Prefetch, PageCacheReport, &Prefetch::deliver>;

  // Cleanup hooks run last in, first out: this one before the one that deletes the function called
  // by the prefetcher. A job whose storage hangs is left behind, and reports to nobody.
  static void end(void* self) {
    auto* const prefetch = static_cast<Prefetch*>(self);
    const bool has_ended = prefetcher_of(prefetch->device).end(prefetch->job, kMaxWait);
    const std::shared_ptr<Link> link = prefetch->link;
    const std::lock_guard<std::mutex> lock(link->mutex);
    link->is_closed = true;
    if (!has_ended && !link->is_done) delete prefetch;
  }

  const uint64_t device;
  uint64_t job = 0;
  Deferred deferred;
  Event event;
  const std::shared_ptr<Link> link = std::make_shared<Link>();
};

// prefetchPageCache(device, paths: '' for a file to skip, set, budgetBytes)
// => failure | [job, Promise<[Float64Array, failure | null]>]
Napi::Value prefetch_page_cache(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto device = static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
  std::vector<std::string> paths = paths_of(info[1]);
  const std::shared_ptr<const WorkingSet> set = working_set_of(info[2]);
  if (!set || paths.empty()) return env.Undefined();
  PageCachePlan plan = page_cache_plan_of(*set);
  if (paths.front().empty()) plan.touches.clear();
  const double budget = info[3].As<Napi::Number>().DoubleValue();
  auto prefetch = std::make_unique<Prefetch>(env, device);
  prefetch->event = Prefetch::Event::New(env, "reap-trace", 0, 1, prefetch.get());
  const Napi::Value promise = prefetch->deferred.promise();
  const auto done = [event = prefetch->event,
                     link = prefetch->link](const PageCacheReport& report) {
    const std::lock_guard<std::mutex> lock(link->mutex);
    if (link->is_closed) return;
    link->is_done = true;
    auto* owned = new PageCacheReport(report);
    if (event.NonBlockingCall(owned) != napi_ok) delete owned;
  };
  Failure failure;
  prefetch->job = prefetcher_of(device).start(std::move(paths), std::move(plan),
                                              static_cast<uint64_t>(budget), done, &failure);
  if (failure) {
    prefetch->event.Release();
    prefetch->deferred.resolve(env.Undefined());
    return to_js(env, failure);
  }
  napi_add_env_cleanup_hook(env, Prefetch::end, prefetch.get());
  Napi::Array result = Napi::Array::New(env, 2);
  result[0U] = static_cast<double>(prefetch.release()->job);
  result[1U] = promise;
  return result;
}

// cancelPrefetch(device, job)
void cancel_prefetch(const Napi::CallbackInfo& info) {
  const auto number = [&info](size_t i) {
    return static_cast<uint64_t>(info[i].As<Napi::Number>().Int64Value());
  };
  prefetcher_of(number(0)).cancel(number(1));
}

class StartRecording : public Task {
 public:
  StartRecording(Napi::Env env, std::vector<std::string> paths, std::chrono::microseconds interval)
      : Task(env), paths_(std::move(paths)), interval_(interval) {}

 protected:
  void execute() override { failure_ = recorder_->start(paths_, interval_); }
  Napi::Value result(Napi::Env env) override {
    using Shared = std::shared_ptr<PageCacheRecorder>;
    return make_tagged(env, std::make_unique<Shared>(std::move(recorder_)), kRecorderTag);
  }

 private:
  const std::vector<std::string> paths_;
  const std::chrono::microseconds interval_;
  std::shared_ptr<PageCacheRecorder> recorder_ = std::make_shared<PageCacheRecorder>();
};

// startRecording(paths, intervalUs) => Promise<failure | recorder>
Napi::Value start_recording(const Napi::CallbackInfo& info) {
  std::vector<std::string> paths = paths_of(info[0]);
  if (paths.empty()) return info.Env().Undefined();
  const std::chrono::microseconds interval(info[1].As<Napi::Number>().Int64Value());
  return run_task<StartRecording>(info.Env(), std::move(paths), interval);
}

class StopRecording : public Task {
 public:
  StopRecording(Napi::Env env, std::shared_ptr<PageCacheRecorder> recorder)
      : Task(env), recorder_(std::move(recorder)) {}

 protected:
  void execute() override { record_ = recorder_->stop(); }
  Napi::Value result(Napi::Env env) override {
    const auto touches = [env](const std::vector<PageCacheRecorder::Touch>& from) {
      Napi::Uint32Array array = Napi::Uint32Array::New(env, from.size() * 3);
      fill(array, from.data());
      return array;
    };
    static_assert(sizeof(PageCacheRecorder::Touch) == 12, "three words");
    Napi::Array result = Napi::Array::New(env, 3);
    result[0U] = touches(record_.cached);
    result[1U] = touches(record_.mapped);
    result[2U] = numbers(
        env, {static_cast<double>(record_.mapper), static_cast<double>(record_.mapper_error),
              static_cast<double>(record_.looks), static_cast<double>(record_.longest_gap_us)});
    return result;
  }

 private:
  const std::shared_ptr<PageCacheRecorder> recorder_;
  PageCacheRecorder::Record record_;
};

// stopRecording(recorder) => Promise<failure | [cached, mapped: Uint32Array of file, page,
// microseconds;
//   Float64Array of mapper's pid, errno, looks, longestGapUs]>
Napi::Value stop_recording(const Napi::CallbackInfo& info) {
  bool ours = false;
  if (!info[0].IsExternal() ||
      napi_check_object_type_tag(info.Env(), info[0], &kRecorderTag, &ours) != napi_ok || !ours) {
    Napi::TypeError::New(info.Env(), "not a recorder").ThrowAsJavaScriptException();
    return info.Env().Undefined();
  }
  auto recorder = *info[0].As<Napi::External<std::shared_ptr<PageCacheRecorder>>>().Data();
  return run_task<StopRecording>(info.Env(), std::move(recorder));
}

class FindReadCosts : public Task {
 public:
  FindReadCosts(Napi::Env env, OpenedFiles files, std::shared_ptr<const WorkingSet> set)
      : Task(env), files_(std::move(files)), set_(std::move(set)) {}

 protected:
  void execute() override {
    // Restores of guests with larger pages read only the memory file.
    if (files_.working_set && set_->header.page_size == kPage) {
      working_set_ = find_read_cost(files_.working_set, *set_, BytesFrom::working_set_file);
    }
    if (files_.memory_file) {
      memory_file_ = find_read_cost(files_.memory_file, *set_, BytesFrom::memory_file);
    }
  }
  Napi::Value result(Napi::Env env) override {
    const auto figures = [env](const std::optional<ReadCost>& cost) -> Napi::Value {
      if (!cost) return env.Null();
      const auto number = [](uint64_t value) { return static_cast<double>(value); };
      return numbers(env,
                     {number(cost->bytes), cost->is_visible ? 1.0 : 0.0, number(cost->cached_bytes),
                      number(cost->reads), number(cost->read_bytes), number(cost->sampled_reads),
                      number(cost->sampled_bytes), number(cost->sample_us)});
    };
    Napi::Array result = Napi::Array::New(env, 2);
    result[0U] = figures(working_set_);
    result[1U] = figures(memory_file_);
    return result;
  }

 private:
  const OpenedFiles files_;
  const std::shared_ptr<const WorkingSet> set_;
  std::optional<ReadCost> working_set_;
  std::optional<ReadCost> memory_file_;
};

// readCosts(files, set) => Promise<failure | [working-set file, memory file]>, each null or a
// Float64Array of the members of ReadCost. Takes the files.
Napi::Value start_finding_read_costs(const Napi::CallbackInfo& info) {
  OpenedFiles* const files = opened_files_of(info[0]);
  const std::shared_ptr<const WorkingSet> set = working_set_of(info[1]);
  if (!files || !set) return info.Env().Undefined();
  return run_task<FindReadCosts>(info.Env(), std::exchange(*files, {}), set);
}

}  // namespace

void add_page_cache(Napi::Env env, Napi::Object exports) {
  exports["prefetchPageCache"] = Napi::Function::New(env, prefetch_page_cache);
  exports["cancelPrefetch"] = Napi::Function::New(env, cancel_prefetch);
  exports["readCosts"] = Napi::Function::New(env, start_finding_read_costs);
  exports["startRecording"] = Napi::Function::New(env, start_recording);
  exports["stopRecording"] = Napi::Function::New(env, stop_recording);
}

}  // namespace reap
