// The embedded guest: a program whose state lies in one arena, and its requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "heap.h"
#include "store.h"

namespace reap::guest {

// Fixed address of the arena: free with 4-level page tables on x86-64 and arm64, clear of
// position-independent executables and their heap, and application memory for the sanitizers.
constexpr uintptr_t kArenaAddress = 0x567000000000;
constexpr size_t kPageBytes = 4096;
constexpr size_t kMinMemoryBytes = 128 << 20;
constexpr size_t kMemoryStepBytes = 2 << 20;

// The first page of the arena.
struct Guest {
  uint64_t magic;
  uint64_t memory_bytes;
  uint64_t requests;
  Heap heap;
  Store store;

  static Guest* at_arena() { return reinterpret_cast<Guest*>(kArenaAddress); }
  static constexpr uint64_t kMagic = 0x7473657567706165;  // "eapguest"
};
static_assert(sizeof(Guest) <= kPageBytes);

struct Reply {
  uint64_t digest;     // of every word read
  uint64_t documents;  // documents read
  uint64_t bytes;      // bytes read
  uint64_t updated;    // documents written in place
};

// Fills the zeroed arena: inserts, replaces and deletes documents until about half of the memory is
// in use. Returns false if the memory is full before that.
bool build_guest(size_t memory_bytes, uint64_t seed);

// Answers one request. Meanwhile only this thread touches the arena, and only in user mode: with a
// user-mode-only userfaultfd, a system call on missing memory would fail.
Reply handle_request(const std::string& input);

}  // namespace reap::guest
