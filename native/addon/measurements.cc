// What is measured of a session, for JavaScript. Times are in milliseconds of CLOCK_MONOTONIC.
#include "uffd/measurements.h"

#include <cmath>
#include <iterator>
#include <memory>
#include <vector>

#include "addon/session_handle.h"

namespace reap {

namespace {

double milliseconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e6; }
double milliseconds(std::chrono::steady_clock::time_point at) {
  return milliseconds(at.time_since_epoch().count());
}
double microseconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1e3; }

Napi::Float64Array array_of(Napi::Env env, const std::vector<double>& numbers) {
  Napi::Float64Array array = Napi::Float64Array::New(env, numbers.size());
  fill(array, numbers.data());
  return array;
}

// counters(session) => the counters by name
Napi::Value counters(const Napi::CallbackInfo& info) {
  const SessionHandle* handle = session_of(info);
  if (!handle) return info.Env().Undefined();
  Napi::Object named = Napi::Object::New(info.Env());
  for (size_t i = 0; i < std::size(kCounterNames); ++i) {
    named[kCounterNames[i]] =
        static_cast<double>(handle->measured->counters.get(static_cast<Counter>(i)));
  }
  return named;
}

// steps(session) => the times of the steps that were reached, by name
Napi::Value steps(const Napi::CallbackInfo& info) {
  const SessionHandle* handle = session_of(info);
  if (!handle) return info.Env().Undefined();
  Napi::Object named = Napi::Object::New(info.Env());
  for (size_t i = 0; i < std::size(kSessionSteps); ++i) {
    const int64_t at = handle->measured->steps.nanoseconds(static_cast<SessionStep>(i));
    if (at != 0) named[kSessionSteps[i]] = milliseconds(at);
  }
  return named;
}

// markReady(session, atMs) => false if the session ended before
Napi::Value mark_ready(const Napi::CallbackInfo& info) {
  const SessionHandle* handle = session_of(info);
  if (!handle) return info.Env().Undefined();
  SessionSteps& steps = handle->measured->steps;
  // Rounded: milliseconds as a double are a little above or below the nanosecond that they name.
  const std::chrono::nanoseconds since_boot(
      std::llround(info[1].As<Napi::Number>().DoubleValue() * 1e6));
  steps.reach(SessionStep::ready, SessionSteps::Clock::time_point(since_boot));
  return Napi::Boolean::New(info.Env(), steps.is_reached(SessionStep::ready));
}

// waits(session) => [stalledMs, slowest, distributions by class]. Slowest: offset, wait in
// microseconds and class of each. Distribution: count, total and maximum in microseconds, then
// limit in microseconds and count of each bucket that is not empty.
Napi::Value waits(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const SessionHandle* handle = session_of(info);
  if (!handle) return env.Undefined();
  const FaultWaits::Report report = handle->measured->waits.report();
  Napi::Array result = Napi::Array::New(env, 3);
  result[0U] = milliseconds(static_cast<int64_t>(report.stalled_ns));
  std::vector<double> slowest;
  for (const FaultWaits::SlowFault& fault : report.slowest) {
    slowest.insert(slowest.end(), {static_cast<double>(fault.offset), microseconds(fault.wait_ns),
                                   static_cast<double>(fault.fault)});
  }
  result[1U] = array_of(env, slowest);
  Napi::Object classes = Napi::Object::New(env);
  for (size_t i = 0; i < report.classes.size(); ++i) {
    const FaultWaits::Distribution& distribution = report.classes[i];
    std::vector<double> numbers{static_cast<double>(distribution.count),
                                microseconds(distribution.total_ns),
                                microseconds(distribution.max_ns)};
    for (size_t bucket = 0; bucket < distribution.buckets.size(); ++bucket) {
      if (distribution.buckets[bucket] == 0) continue;
      numbers.push_back(microseconds(FaultWaits::limit_ns(bucket)));
      numbers.push_back(static_cast<double>(distribution.buckets[bucket]));
    }
    classes[kFaultClasses[i]] = array_of(env, numbers);
  }
  result[2U] = classes;
  return result;
}

// prefetchWork(session) => [fetchMs, diskMs, diskBytes, installMs, installCpuMs]
Napi::Value prefetch_work(const Napi::CallbackInfo& info) {
  const SessionHandle* handle = session_of(info);
  if (!handle) return info.Env().Undefined();
  const PrefetchWork::Report work = handle->measured->prefetch.report();
  return array_of(info.Env(),
                  {milliseconds(work.fetched.count()), milliseconds(work.waited.count()),
                   static_cast<double>(work.disk_bytes), milliseconds(work.installed.count()),
                   milliseconds(work.on_core.count())});
}

// timeline(session) => [spans, missing]. Span: kind, from, to, offset, bytes, class, waited,
// thread.
Napi::Value timeline(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const SessionHandle* handle = session_of(info);
  if (!handle) return env.Undefined();
  uint64_t missing = 0;
  std::vector<double> numbers;
  for (const Timeline::Span& span : handle->measured->timeline.spans(&missing)) {
    numbers.insert(numbers.end(), {static_cast<double>(span.kind), milliseconds(span.from),
                                   milliseconds(span.to), static_cast<double>(span.offset),
                                   static_cast<double>(span.bytes), static_cast<double>(span.fault),
                                   span.waited ? 1.0 : 0.0, static_cast<double>(span.thread)});
  }
  Napi::Array result = Napi::Array::New(env, 2);
  result[0U] = array_of(env, numbers);
  result[1U] = static_cast<double>(missing);
  return result;
}

}  // namespace

void add_measurements(Napi::Env env, Napi::Object exports) {
  exports["counters"] = Napi::Function::New(env, counters);
  exports["steps"] = Napi::Function::New(env, steps);
  exports["markReady"] = Napi::Function::New(env, mark_ready);
  exports["waits"] = Napi::Function::New(env, waits);
  exports["prefetchWork"] = Napi::Function::New(env, prefetch_work);
  exports["timeline"] = Napi::Function::New(env, timeline);
}

}  // namespace reap
