// What the two files of the seam share: addon.cc (sessions) and addon_page_cache.cc.
#pragma once

#ifndef NAPI_VERSION
#define NAPI_VERSION 8
#endif
#include <napi.h>

#include "failure.h"

namespace reap {

// An object, or null for none.
Napi::Value to_js(Napi::Env env, const Failure& failure);

void add_page_cache(Napi::Env env, Napi::Object exports);

}  // namespace reap
