// What can go wrong, as data. Sentences are made in TypeScript (src/binding/addon.ts).
#pragma once

#include <cstdint>

namespace reap {

// The order is part of the seam: src/binding/addon.ts names these by index.
enum class ErrorCode : uint32_t {
  none,
  socket,
  handshake_timeout,
  handshake_invalid,
  peer_refused,
  source_read,
  working_set_invalid,
  working_set_io,
  fault_unresolved,
  snapshot_mismatch,
  page_cache,
};

struct Failure {
  ErrorCode code = ErrorCode::none;
  int err = 0;               // negative errno, 0 when no syscall failed
  const char* syscall = "";  // static storage
  const char* check = "";    // static storage: the rule that was broken
  uint64_t offset = 0;       // byte offset, address or region index, as `check` says
  uint64_t want = 0;
  uint64_t got = 0;

  explicit operator bool() const { return code != ErrorCode::none; }
};

// Of a system call that failed.
inline Failure failed_call(ErrorCode code, int err, const char* syscall, uint64_t offset = 0) {
  Failure failure;
  failure.code = code;
  failure.err = err;
  failure.syscall = syscall;
  failure.offset = offset;
  return failure;
}

}  // namespace reap
