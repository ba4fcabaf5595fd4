// Node-API only: arguments in, events out. The other side of the seam is src/binding/addon.ts.
#include "addon/addon.h"

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "addon/session_handle.h"
#include "addon/task.h"
#include "addon/working_set.h"
#include "session/engine.h"
#include "uffd/uffd.h"

namespace reap {

Napi::Value to_js(Napi::Env env, const Failure& failure) {
  if (!failure) return env.Null();
  Napi::Object object = Napi::Object::New(env);
  object["code"] = name_of(failure.code);
  object["errno"] = failure.err;
  object["syscall"] = failure.syscall;
  object["check"] = failure.check;
  object["offset"] = Napi::BigInt::New(env, failure.offset);
  object["want"] = Napi::BigInt::New(env, failure.want);
  object["got"] = Napi::BigInt::New(env, failure.got);
  return object;
}

}  // namespace reap

namespace {

using reap::Engine;
using reap::Event;
using reap::Failure;
using reap::session_of;
using reap::SessionHandle;
using reap::to_js;

constexpr uint32_t kRecord = 1;
constexpr uint32_t kLeaveVm = 2;
constexpr uint32_t kFailIfReadHangs = 4;
constexpr uint32_t kTimeline = 8;
constexpr napi_type_tag kSessionTag = {0x8a1f0c6d5b2e4973, 0x9d3e7f10a4c2b658};

Napi::Object to_js(Napi::Env env, const Event& event) {
  Napi::Object object = Napi::Object::New(env);
  object["session"] = static_cast<double>(event.session);
  object["atMs"] = static_cast<double>(event.at.time_since_epoch().count()) / 1e6;
  object["kind"] = name_of(event.kind);
  object["failure"] = to_js(env, event.failure);
  object["pid"] = event.pid;
  if (event.kind == Event::Kind::connected) {
    object["pageSize"] = static_cast<double>(event.page_size);
    std::vector<uint64_t> flat;
    for (const auto& region : event.regions) {
      flat.insert(flat.end(), {region.base, region.size, region.offset});
    }
    Napi::BigUint64Array regions = Napi::BigUint64Array::New(env, flat.size());
    reap::fill(regions, flat.data());
    object["regions"] = regions;
  } else if (event.kind == Event::Kind::prefetched) {
    const reap::PrefetchReport& report = event.prefetch;
    const auto number = [](uint64_t value) { return static_cast<double>(value); };
    const double fields[] = {number(report.pages), number(report.extents), number(report.bytes),
                             number(report.since_connect_us), report.from_working_set ? 1.0 : 0.0};
    Napi::Float64Array numbers = Napi::Float64Array::New(env, std::size(fields));
    reap::fill(numbers, fields);
    object["prefetch"] = numbers;
  } else if (event.kind == Event::Kind::ended) {
    object["state"] = name_of(event.state);
    if (event.oom) object["oom"] = true;
  }
  return object;
}

// One per JavaScript environment: each worker thread has a separate engine.
class Environment {
 public:
  explicit Environment(Napi::Env env) : env_(env), tasks_(env) {}
  ~Environment() { shutdown(); }
  static Environment& of(const Napi::CallbackInfo& info) {
    return *info.Env().GetInstanceData<Environment>();
  }

  Failure start(Napi::Function listener) {
    shutdown();
    events_ = Events::New(env_, listener, "reap-trace", 0, 1, this);
    events_.Unref(env_);
    Failure failure;
    engine_ = Engine::create(
        [events = events_](Event&& event) {
          auto* owned = new Event(std::move(event));
          if (events.NonBlockingCall(owned) != napi_ok) delete owned;
        },
        &failure);
    if (!engine_) {
      events_.Release();
      return failure;
    }
    // Hooks run last in, first out: this one stops our threads before Node releases the function
    // that they call.
    env_.AddCleanupHook([](Environment* self) { self->shutdown(); }, this);
    return {};
  }
  void shutdown() {
    if (!engine_) return;
    engine_->shutdown();
    engine_.reset();
    events_.Release();
    open_sessions_ = 0;
  }

  Engine* engine() { return engine_.get(); }
  reap::Tasks& tasks() { return tasks_; }

  // An open session keeps the process alive, like a listening server.
  void opened() {
    if (open_sessions_++ == 0) events_.Ref(env_);
  }
  void ended() {
    if (open_sessions_ > 0 && --open_sessions_ == 0) events_.Unref(env_);
  }

 private:
  static void deliver(Napi::Env env, Napi::Function listener, Environment* self, Event* event) {
    const std::unique_ptr<Event> owned(event);
    if (env == nullptr) return;  // the environment is being torn down
    if (owned->kind == Event::Kind::ended) self->ended();
    listener.Call({to_js(env, *owned)});
  }
  using Events = Napi::TypedThreadSafeFunction<Environment, Event, &Environment::deliver>;

  Napi::Env env_;
  reap::Tasks tasks_;
  Events events_;
  std::shared_ptr<Engine> engine_;
  unsigned open_sessions_ = 0;
};

// start(listener) => failure | null
Napi::Value start(const Napi::CallbackInfo& info) {
  return to_js(info.Env(), Environment::of(info).start(info[0].As<Napi::Function>()));
}

// open(socketPath, files, set | null, isProven, flags, peerUid | -1, vmmPid | 0, connectTimeoutMs,
//   readTimeoutMs, heldOut: Uint32Array) => failure | [id, session]
// Takes ownership of the files, whether it succeeds or not. isProven: the memory file holds the
// bytes of the set's file, each in the state in which it was opened.
Napi::Value open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Environment& environment = Environment::of(info);
  if (!environment.engine()) {
    Napi::TypeError::New(env, "start() comes first").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  reap::OpenedFiles* opened = reap::opened_files_of(info[1]);
  if (!opened) return env.Undefined();
  reap::OpenedFiles files = std::exchange(*opened, {});
  reap::SessionOptions options;
  options.socket_path = info[0].As<Napi::String>().Utf8Value();
  if (!info[2].IsNull()) {
    const std::shared_ptr<const reap::WorkingSet> set = reap::working_set_of(info[2]);
    if (!set) return env.Undefined();
    if (set->header.memory_bytes != files.memory_file.bytes()) {
      Napi::TypeError::New(env, "a working set of another memory").ThrowAsJavaScriptException();
      return env.Undefined();
    }
    options.plan = {set, &set->plan};
    options.held_out = reap::records<uint32_t>(info[9]);
    if (info[3].As<Napi::Boolean>() && files.working_set) {
      options.proven = std::make_shared<const reap::ProvenFile>(
          reap::ProvenFile{std::move(files.working_set), files.memory_file.stamp()});
    }
  }
  options.memory_file = std::move(files.memory_file);
  const uint32_t flags = info[4].As<Napi::Number>().Uint32Value();
  options.record = flags & kRecord;
  options.kill_vm = !(flags & kLeaveVm);
  options.fails_if_read_hangs = flags & kFailIfReadHangs;
  options.read_timeout = std::chrono::milliseconds(info[8].As<Napi::Number>().Int64Value());
  const int64_t peer_uid = info[5].As<Napi::Number>().Int64Value();
  if (peer_uid >= 0) options.peer_uid = static_cast<uid_t>(peer_uid);
  options.connect_timeout = std::chrono::milliseconds(info[7].As<Napi::Number>().Int64Value());
  options.vmm = info[6].As<Napi::Number>().Int32Value();

  auto handle = std::make_unique<SessionHandle>();
  if (flags & kTimeline) handle->measured->timeline.enable();
  Failure failure;
  handle->id = environment.engine()->open(std::move(options), handle->measured, &failure);
  if (handle->id == 0) return to_js(env, failure);
  environment.opened();

  Napi::Array result = Napi::Array::New(env, 2);
  result[0U] = static_cast<double>(handle->id);
  result[1U] = reap::make_tagged(env, std::move(handle), kSessionTag);
  return result;
}

// close(session, killVm)
void close(const Napi::CallbackInfo& info) {
  SessionHandle* handle = session_of(info);
  Engine* engine = Environment::of(info).engine();
  if (!handle || !engine) return;
  if (auto session = engine->find(handle->id)) {
    session->close(info[1].As<Napi::Boolean>().Value());
  }
}

// detach(session) => true if a VM is being served
Napi::Value detach(const Napi::CallbackInfo& info) {
  SessionHandle* handle = session_of(info);
  Engine* engine = Environment::of(info).engine();
  if (!handle || !engine) return Napi::Boolean::New(info.Env(), false);
  const auto session = engine->find(handle->id);
  return Napi::Boolean::New(info.Env(), session && session->detach());
}

// readCached(session, offset, into: Uint8Array) => boolean
Napi::Value read_cached(const Napi::CallbackInfo& info) {
  SessionHandle* handle = session_of(info);
  Engine* engine = Environment::of(info).engine();
  const auto session = handle && engine ? engine->find(handle->id) : nullptr;
  auto into = info[2].As<Napi::Uint8Array>();
  const auto offset = static_cast<uint64_t>(info[1].As<Napi::Number>().Int64Value());
  using Read = reap::PageSource::Read;
  return Napi::Boolean::New(
      info.Env(),
      session && session->memory_file().read_cached(offset, into.Data(), into.ByteLength()).read ==
                     Read::done);
}

// takeTrace(session) => [pageSize, memoryBytes, Uint32Array of page, microseconds, page, …]
Napi::Value take_trace(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  SessionHandle* handle = session_of(info);
  if (!handle) return env.Undefined();
  const auto taken = handle->measured->trace.take();
  const reap::TraceRecorder::Trace& trace = *taken;
  Napi::Uint32Array touches = Napi::Uint32Array::New(env, trace.touches.size() * 2);
  reap::fill(touches, trace.touches.data());
  Napi::Array result = Napi::Array::New(env, 3);
  result[0U] = static_cast<double>(trace.page_size);
  result[1U] = static_cast<double>(trace.memory_bytes);
  result[2U] = touches;
  return result;
}

// shutdown(): ends every session as its options specify
void shutdown(const Napi::CallbackInfo& info) { Environment::of(info).shutdown(); }

// probe() => [device, syscall, userModeOnly: each 0 or a negative errno; features: bigint]
Napi::Value probe(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const reap::uffd::Availability found = reap::uffd::probe();
  Napi::Array result = Napi::Array::New(env, 4);
  result[0U] = found.device;
  result[1U] = found.syscall;
  result[2U] = found.user_mode_only;
  result[3U] = Napi::BigInt::New(env, found.features);
  return result;
}

template <size_t N>
Napi::Array list(Napi::Env env, const char* const (&names)[N]) {
  Napi::Array strings = Napi::Array::New(env, N);
  for (size_t i = 0; i < N; ++i) strings[i] = names[i];
  return strings;
}

// All names that may cross the seam, for the test that compares them with the types in TypeScript.
Napi::Value names(const Napi::CallbackInfo& info) {
  Napi::Object all = Napi::Object::New(info.Env());
  all["errors"] = list(info.Env(), reap::kErrorCodes);
  all["events"] = list(info.Env(), reap::kEventKinds);
  all["ends"] = list(info.Env(), reap::kEndStates);
  all["counters"] = list(info.Env(), reap::kCounterNames);
  all["steps"] = list(info.Env(), reap::kSessionSteps);
  all["faultClasses"] = list(info.Env(), reap::kFaultClasses);
  all["spans"] = list(info.Env(), reap::kSpanKinds);
  return all;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  exports["start"] = Napi::Function::New(env, start);
  exports["open"] = Napi::Function::New(env, open);
  exports["close"] = Napi::Function::New(env, close);
  exports["detach"] = Napi::Function::New(env, detach);
  exports["readCached"] = Napi::Function::New(env, read_cached);
  exports["takeTrace"] = Napi::Function::New(env, take_trace);
  exports["shutdown"] = Napi::Function::New(env, shutdown);
  exports["names"] = Napi::Function::New(env, names);
  exports["probe"] = Napi::Function::New(env, probe);
  reap::add_comparison(env, exports);
  reap::add_files(env, exports);
  reap::add_measurements(env, exports);
  reap::add_page_cache(env, exports);
  reap::add_working_set(env, exports);
  return exports;
}

}  // namespace

reap::SessionHandle* reap::session_of(const Napi::CallbackInfo& info) {
  const auto external = info[0].As<Napi::External<SessionHandle>>();
  bool ours = false;
  if (!info[0].IsExternal() ||
      napi_check_object_type_tag(info.Env(), info[0], &kSessionTag, &ours) != napi_ok || !ours) {
    Napi::TypeError::New(info.Env(), "not a session").ThrowAsJavaScriptException();
    return nullptr;
  }
  return external.Data();
}

reap::Tasks& reap::tasks_of(Napi::Env env) { return env.GetInstanceData<Environment>()->tasks(); }

NODE_API_MODULE(reap_trace, init)
