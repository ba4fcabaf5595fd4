// Declarations shared by the files of the seam: addon.cc (sessions), comparison.cc, files.cc,
// page_cache.cc and working_set.cc.
#pragma once

#ifndef NAPI_VERSION
#define NAPI_VERSION 8
#endif
#include <napi.h>

#include <cstdint>
#include <cstring>
#include <vector>

#include "base/failure.h"

namespace reap {

// An object, or null for no failure.
Napi::Value to_js(Napi::Env env, const Failure& failure);

// Copies into an array that was just made. The array has no storage in a worker thread that is
// being terminated, where nothing can be allocated but completions still arrive.
template <typename Array>
void fill(Array& array, const void* from) {
  if (array.Data() != nullptr && array.ByteLength() > 0) {
    std::memcpy(array.Data(), from, array.ByteLength());
  }
}

// Work for a pool thread, whose end is a promise.
class Task : public Napi::AsyncWorker {
 public:
  explicit Task(Napi::Env env)
      : AsyncWorker(env, "reap-trace"), deferred_(Napi::Promise::Deferred::New(env)) {}
  Napi::Promise run() {
    const Napi::Promise promise = deferred_.Promise();
    Queue();
    return promise;
  }

 protected:
  virtual Napi::Value result(Napi::Env env) = 0;
  void OnOK() override { deferred_.Resolve(result(Env())); }

 private:
  Napi::Promise::Deferred deferred_;
};

// Entries of a table that is passed as a typed array.
template <typename Record>
std::vector<Record> records(Napi::Value value) {
  const auto bytes = value.As<Napi::TypedArray>();
  std::vector<Record> copied(bytes.ByteLength() / sizeof(Record));
  if (copied.empty()) return copied;
  const auto* data = static_cast<const uint8_t*>(bytes.ArrayBuffer().Data()) + bytes.ByteOffset();
  std::memcpy(copied.data(), data, copied.size() * sizeof(Record));
  return copied;
}

void add_comparison(Napi::Env env, Napi::Object exports);
void add_files(Napi::Env env, Napi::Object exports);
void add_page_cache(Napi::Env env, Napi::Object exports);
void add_working_set(Napi::Env env, Napi::Object exports);

}  // namespace reap
