// Failures as data. Their sentences are in TypeScript (src/binding/explain*.ts).
#pragma once

#include <cerrno>
#include <cstdint>

#include "base/named_enum.h"

namespace reap {

#define REAP_ERROR_CODES(X)                         \
  X(none, "")                                       \
  X(native_unavailable, "ERR_NATIVE_UNAVAILABLE")   \
  X(limit, "ERR_LIMIT")                             \
  X(socket, "ERR_SOCKET")                           \
  X(handshake_timeout, "ERR_HANDSHAKE_TIMEOUT")     \
  X(vmm_exited, "ERR_VMM_EXITED")                   \
  X(handshake_invalid, "ERR_HANDSHAKE_INVALID")     \
  X(peer_refused, "ERR_PEER_REFUSED")               \
  X(vmm_unsupported, "ERR_VMM_UNSUPPORTED")         \
  X(source_read, "ERR_SOURCE_READ")                 \
  X(working_set_invalid, "ERR_WORKING_SET_INVALID") \
  X(working_set_io, "ERR_WORKING_SET_IO")           \
  X(untrusted_file, "ERR_UNTRUSTED_FILE")           \
  X(store_io, "ERR_STORE_IO")                       \
  X(fault_unresolved, "ERR_FAULT_UNRESOLVED")       \
  X(page_cache, "ERR_PAGE_CACHE")
REAP_NAMED_ENUM(ErrorCode, kErrorCodes, REAP_ERROR_CODES)

struct Failure {
  ErrorCode code = ErrorCode::none;
  int err = 0;               // negative errno, 0 when no syscall failed
  const char* syscall = "";  // static storage
  const char* check = "";    // static storage: name of the broken rule
  uint64_t offset = 0;       // byte offset, address or region index, depending on `check`
  uint64_t want = 0;
  uint64_t got = 0;

  explicit operator bool() const { return code != ErrorCode::none; }
};

// Failure of a system call. If no descriptors are left, the code is that of the limit, whatever the
// call was for; except for a working set, without which a restore goes on.
inline Failure failed_call(ErrorCode code, int err, const char* syscall, uint64_t offset = 0) {
  Failure failure;
  failure.code = code;
  failure.err = err;
  failure.syscall = syscall;
  failure.offset = offset;
  if ((err == -EMFILE || err == -ENFILE) && code != ErrorCode::working_set_io) {
    failure.code = ErrorCode::limit;
    failure.check = err == -EMFILE ? "RLIMIT_NOFILE" : "fs.file-max";
  }
  return failure;
}

// Failure to start a thread (base/thread.h).
inline Failure no_thread(int err) {
  return failed_call(ErrorCode::native_unavailable, err, "pthread_create");
}

}  // namespace reap
