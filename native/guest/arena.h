// Memory of the embedded guest: written as a snapshot, and restored in two ways.
#pragma once

#include <cstdint>
#include <string>

#include "answer.h"
#include "base/posix.h"
#include "userfault.h"

namespace reap::guest {

struct SnapshotReport {
  uint64_t memory_bytes;
  uint64_t data_pages;  // pages stored; the others are holes in the file
  uint64_t documents;
};

// Builds the guest and writes its memory file, under a temporary name until it is complete.
Error build_snapshot(const std::string& path, uint64_t memory_bytes, uint64_t seed,
                     SnapshotReport* report);

class Arena {
 public:
  // Like a VMM's File backend: the kernel reads the memory file page by page.
  Error restore_file(const std::string& memory_file);
  // Like Firecracker's Uffd backend: empty memory, and a fault handler behind `socket_path`.
  Error restore_uffd(const std::string& socket_path, uint64_t memory_bytes);
  // Checks that the memory holds a guest; touches its first page.
  Error check() const;

  const uint8_t* data() const { return memory_.data(); }
  uint64_t size() const { return memory_.size(); }

 private:
  Mapping memory_;
  Userfault userfault_;
  UniqueFd socket_;
};

}  // namespace reap::guest
