// Declarations shared by the files of the seam: addon.cc (sessions), comparison.cc, files.cc,
// measurements.cc, page_cache.cc and working_set.cc.
#pragma once

#ifndef NAPI_VERSION
#define NAPI_VERSION 8
#endif
#include <napi.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
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

// A promise and its resolution. In a worker thread that is being terminated Node-API makes no
// promise, and that of node-addon-api stays uninitialized; this one is then undefined.
// Test: "a worker thread that is terminated leaves no file open".
class Deferred {
 public:
  explicit Deferred(Napi::Env env) : env_(env) {
    if (napi_create_promise(env, &deferred_, &promise_) != napi_ok) deferred_ = nullptr;
  }
  // Valid in the scope of the constructor.
  Napi::Value promise() const { return deferred_ ? Napi::Value(env_, promise_) : Napi::Value(); }
  void resolve(Napi::Value result) {
    if (deferred_) napi_resolve_deferred(env_, std::exchange(deferred_, nullptr), result);
  }

 private:
  napi_env env_;
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr;
};

// Entries of a table that is passed as a typed array. Empty in a worker thread that is being
// terminated, where Node-API reads none.
template <typename Record>
std::vector<Record> records(Napi::Value value) {
  const size_t bytes = value.As<Napi::TypedArray>().ByteLength();
  std::vector<Record> copied(bytes / sizeof(Record));
  void* data = nullptr;
  if (copied.empty() || napi_get_typedarray_info(value.Env(), value, nullptr, nullptr, &data,
                                                 nullptr, nullptr) != napi_ok) {
    return {};
  }
  std::memcpy(copied.data(), data, copied.size() * sizeof(Record));
  return copied;
}

// An external that owns the value. Empty in a worker thread that is being terminated, where none
// can be made and the value goes. Test: "a worker thread that is terminated leaves no file open".
template <typename Value>
Napi::Value make_tagged(Napi::Env env, std::unique_ptr<Value> value, const napi_type_tag& tag) {
  auto external =
      Napi::External<Value>::New(env, value.get(), [](Napi::Env, Value* gone) { delete gone; });
  if (external.IsEmpty()) return external;
  value.release();
  napi_type_tag_object(env, external, &tag);
  return external;
}

// The pointer of an external with this tag. Throws and returns null for any other value.
template <typename Value>
Value* tagged(Napi::Value value, const napi_type_tag& tag, const char* message) {
  bool ours = false;
  if (!value.IsExternal() ||
      napi_check_object_type_tag(value.Env(), value, &tag, &ours) != napi_ok || !ours) {
    Napi::TypeError::New(value.Env(), message).ThrowAsJavaScriptException();
    return nullptr;
  }
  return value.As<Napi::External<Value>>().Data();
}

void add_comparison(Napi::Env env, Napi::Object exports);
void add_files(Napi::Env env, Napi::Object exports);
void add_measurements(Napi::Env env, Napi::Object exports);
void add_page_cache(Napi::Env env, Napi::Object exports);
void add_working_set(Napi::Env env, Napi::Object exports);

}  // namespace reap
