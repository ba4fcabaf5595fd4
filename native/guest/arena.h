// The embedded guest's memory: made into a snapshot, and restored from it in two ways.
#pragma once

#include <cstdint>
#include <string>

#include "answer.h"
#include "base/posix.h"
#include "userfault.h"

namespace reap::guest {

struct SnapshotReport {
  uint64_t memory_bytes;
  uint64_t data_pages;  // the others are holes in the file
  uint64_t documents;
};

// Builds the guest and writes its memory file, under a temporary name until it is complete.
Error build_snapshot(const std::string& path, uint64_t memory_bytes, uint64_t seed,
                     SnapshotReport* report);

class Arena {
 public:
  // As a VMM's file backend: the kernel reads the memory file page by page.
  Error restore_file(const std::string& memory_file);
  // As Firecracker's Uffd backend: empty memory, and a fault handler behind `socket_path`.
  Error restore_uffd(const std::string& socket_path, uint64_t memory_bytes);
  // Whether a guest is there; touches its first page.
  Error check() const;

  const uint8_t* data() const { return memory_.data(); }
  uint64_t size() const { return memory_.size(); }

 private:
  Mapping memory_;
  Userfault userfault_;
  UniqueFd socket_;
};

}  // namespace reap::guest
