// JavaScript's handle for a session.
#pragma once

#include <cstdint>
#include <memory>

#include "addon/addon.h"
#include "uffd/measurements.h"

namespace reap {

struct SessionHandle {
  uint64_t id = 0;
  std::shared_ptr<Measurements> measured = std::make_shared<Measurements>();
};

// The handle that is the first argument; null, with a TypeError thrown, for any other value.
SessionHandle* session_of(const Napi::CallbackInfo& info);

}  // namespace reap
