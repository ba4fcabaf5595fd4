// Trace of the KVM guest, and its file. Little-endian:
//
//   0   8 bytes  "REAPKVM1"
//   8   u64      bytes of guest memory
//   16  u64      number of entries
//   24  entries, 16 bytes each:
//       u64      offset of a 64-bit word in guest memory, a multiple of 8, plus the flags
//       u64      expected word; with kGiveBack, the number of bytes to give back
//
// The words are in the file because reading them from the memory file would warm the page cache.
// Entries of one page that different vCPUs replay have no order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "answer.h"

namespace reap::guest {

struct TraceEntry {
  // Writes the complement of the word. It may be there already: vCPUs that replay the same entry
  // leave the same value.
  static constexpr uint64_t kWrite = 1;
  // Gives whole pages back to the VMM, like a balloon. They are zero afterwards.
  static constexpr uint64_t kGiveBack = 2;
  static constexpr uint64_t kFlags = 7;

  uint64_t place;
  uint64_t word;

  uint64_t offset() const { return place & ~kFlags; }
  bool has(uint64_t flag) const { return (place & flag) != 0; }
};
static_assert(sizeof(TraceEntry) == 16, "as in the file, and as the guest's code reads it");

struct KvmTrace {
  uint64_t memory_bytes = 0;
  std::vector<TraceEntry> entries;

  static Error read(const std::string& path, KvmTrace* trace);
};

}  // namespace reap::guest
