// What the two files of the seam share: addon.cc (sessions) and addon_page_cache.cc.
#pragma once

#ifndef NAPI_VERSION
#define NAPI_VERSION 8
#endif
#include <napi.h>

#include <cstring>

#include "failure.h"

namespace reap {

// An object, or null for none.
Napi::Value to_js(Napi::Env env, const Failure& failure);

// Copies into an array that was just made. It has no room in a worker thread that is being
// terminated, where nothing can be made and ends of work are told all the same.
template <typename Array>
void fill(Array& array, const void* from) {
  if (array.Data() != nullptr && array.ByteLength() > 0) {
    std::memcpy(array.Data(), from, array.ByteLength());
  }
}

void add_page_cache(Napi::Env env, Napi::Object exports);

}  // namespace reap
