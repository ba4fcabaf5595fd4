// State of the one file named in the interposer's settings.
//
//   idle ──▶ collecting ──▶ served
//     └──────────┴────────▶ plain
//
// A part of the file gets registered memory as soon as it is mapped. When the parts cover the file,
// they are announced; a VMM that maps it in one piece skips `collecting`. No handler serves before
// the announcement is read, so no page is installed until then, and any failure up to then ends in
// `plain`: each part becomes the mapping that the VMM requested.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>

namespace reap::interposer {

struct MapCall {
  void* address;
  size_t length;
  int protection;
  int flags;
  int fd;
  off_t offset;
};

enum class Phase : int { idle, collecting, served, plain };

// May be read without the lock if a slightly stale value suffices.
extern std::atomic<Phase> phase;

// Maps a file that may be the memory file.
void* map_file(const MapCall& call);

// Must be called before a range is unmapped, protected or mapped over while parts are collected.
void before_change(const void* address, size_t length);

// Must be called after a range was unmapped or mapped over while memory is served.
void after_loss(const void* address, size_t length);

// True if a range contains served memory.
bool is_served(const void* address, size_t length);

}  // namespace reap::interposer
