// What became of the one file that the interposer was told of.
//
//   idle ──▶ collecting ──▶ served
//     └──────────┴────────▶ plain
//
// A part of the file is given registered memory as soon as it is mapped. When the parts are the
// whole file, they are announced; a VMM that maps it in one piece never is in between. Nobody
// serves before the announcement is read, so that not one page is there, and whatever goes wrong up
// to then ends in `plain`: each part becomes the mapping that the VMM had asked for.
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

// May be read without a lock where an answer that is a moment old will do.
extern std::atomic<Phase> phase;

// Maps what may be the memory file.
void* map_file(const MapCall& call);

// Must be called before a range is unmapped, protected or mapped over while parts are collected.
void before_change(const void* address, size_t length);

// Must be called when a range was unmapped or mapped over while memory is served.
void after_loss(const void* address, size_t length);

// Whether a range has memory that is served.
bool is_served(const void* address, size_t length);

}  // namespace reap::interposer
