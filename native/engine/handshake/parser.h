// Body of Firecracker's UFFD handshake: a bare JSON array with one object per guest memory region,
// sent on a stream socket without length, terminator or version.
//
// The peer is a VMM that may be compromised, so nothing is guessed: a message is either understood
// completely or refused with the name of the failed check.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "handshake/json_reader.h"
#include "uffd/guest_memory.h"

namespace reap {

constexpr size_t kMaxHandshakeBytes = size_t{1} << 20;
constexpr size_t kMaxRegions = 64;

// A parsed handshake: the regions are sorted by offset and cover the memory file exactly, they do
// not overlap in the VMM's address space, and all their numbers are multiples of page_size.
struct Handshake {
  std::vector<Region> regions;
  uint64_t page_size = 0;  // bytes
};

// The known keys; a refusal identifies one by its index.
constexpr const char* kHandshakeKeys[] = {"base_host_virt_addr", "size",      "offset",
                                          "page_size_kib",       "page_size", "is_guest_memfd"};

// Why a message was refused. Byte offsets count from the start of the message; regions are
// numbered from 0 in the order of the message, whatever their offsets.
//
//   check                offset        want                      got
//   too-large            limit         limit                     message size
//   json                 byte          0                         byte there, or json::kEnd
//   utf8                 byte          0                         lead byte, or lone surrogate
//   depth                byte          json::kMaxDepth           one more
//   not-an-array         byte          '['                       byte there
//   region-count         first excess  min or max allowed        0, or one too many
//   region-type          region        '{'                       first byte of the element
//   region-key-missing   region        key                       0
//   region-key-type      region        key                       byte offset of its value
//   region-key-twice     region        key                       byte offset of the second
//   guest-memfd          region        0                         1
//   page-size-disagrees  region        page_size                 page_size_kib
//   page-size            region        system page size          page size sent
//   page-size-mixed      region        page size of region 0     page size of this one
//   region-empty         region        page size                 0
//   alignment            region        page size                 the base, size or offset
//   address-overflow     region        largest size at its base  its size
//   memory-size          0             size of the memory file   sum of sizes (saturated)
//   offset-gap           region        end of the one before     its offset
//   offset-overlap       region        end of the one before     its offset
//   region-overlap       region        end of the one below it   its base
using HandshakeRefusal = json::Refusal;

struct HandshakeLimits {
  uint64_t memory_bytes;      // size of the memory file
  uint64_t system_page_size;  // bytes
};

// Finds the end of the message in a stream that arrives in pieces of any size; each byte is scanned
// once. Only strings and brackets are recognised: a complete message may still be refused, and an
// invalid one is refused by parse_handshake() with the reason.
class MessageScanner {
 public:
  enum class State { incomplete, complete, invalid };

  State feed(const char* data, size_t size);
  // Bytes up to and including the closing bracket; 0 until it has arrived.
  size_t message_size() const { return message_size_; }

 private:
  State step(char byte);

  State state_ = State::incomplete;
  size_t fed_ = 0;
  size_t message_size_ = 0;
  unsigned depth_ = 0;
  uint32_t objects_ = 0;  // bit d: the container at depth d + 1 is an object
  bool in_string_ = false;
  bool escaped_ = false;
};

// Either fills `out` and returns true, or leaves it unchanged, fills `why` and returns false.
bool parse_handshake(std::string_view message, const HandshakeLimits& limits, Handshake* out,
                     HandshakeRefusal* why);

}  // namespace reap
