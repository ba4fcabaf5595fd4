// Sends a VMM's handshake to its fault handler, deliberately wrong on request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "answer.h"
#include "base/posix.h"

namespace reap::guest {

// One mapping of guest memory, with the names of Firecracker's message.
struct HandshakeRegion {
  uint64_t base_host_virt_addr;
  uint64_t size;
  uint64_t offset;
  uint64_t page_size;
};

enum class PageSizeKeys { kNone, kKib, kPageSize, kBoth };
enum class Tweak { kNone, kOverlap, kGap, kOddSize, kMixedPage, kUnaligned, kTooShort, kTooLong };

// The defaults are Firecracker's.
struct HandshakeOptions {
  PageSizeKeys keys = PageSizeKeys::kBoth;
  Tweak tweak = Tweak::kNone;
  bool unknown_keys = false;
  bool guest_memfd = false;
  size_t pad_bytes = 0;
  std::optional<std::string> raw;  // instead of the JSON
  unsigned fd_count = 1;
  size_t pieces = 1;
  std::optional<size_t> truncate_bytes;  // send at most these, then shut down the writing side
  bool hold = false;                     // connect without sending
};

struct HandshakeReport {
  UniqueFd socket;
  size_t sent_bytes = 0;
  size_t total_bytes = 0;
  int send_error = 0;  // negative; a handler that closes early is not an error here
};

Error send_handshake(const std::string& socket_path, std::vector<HandshakeRegion> regions, int fd,
                     const HandshakeOptions& options, HandshakeReport* report);

}  // namespace reap::guest
