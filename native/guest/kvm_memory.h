// Memory of the KVM guest, restored as in a VMM.
#pragma once

#include <cstdint>
#include <string>

#include "answer.h"
#include "base/posix.h"
#include "kvm_trace.h"
#include "userfault.h"
#include "vmm_memory.h"

namespace reap::guest {

class KvmMemory {
 public:
  // Like Firecracker's File backend: a private mapping of the memory file.
  static Error map_file(const std::string& memory_file, uint64_t bytes, KvmMemory* memory);
  // Like its Uffd backend, up to the handshake: empty memory and a userfaultfd. With
  // `user_mode_only`, one that does not deliver KVM's faults.
  static Error map_userfault(uint64_t bytes, uint64_t page_size, bool user_mode_only,
                             KvmMemory* memory);
  Error connect(const std::string& socket_path);

  uint8_t* data() const { return data_; }
  uint64_t page_size() const { return page_size_; }
  bool user_mode_only() const { return userfault_.user_mode_only; }

  // Like a balloon: the pages are zero afterwards. With a fault handler, returns when it has read
  // the event. May be called while vCPUs run.
  Error give_back(uint64_t offset, uint64_t bytes) const;

  // Compares all pages of the trace with their content in the memory file after the trace's writes.
  struct Difference {
    uint64_t pages = 0;  // compared
    uint64_t wrong = 0;
    uint64_t first_wrong = 0;
  };
  Error compare(const std::string& memory_file, const KvmTrace& trace,
                Difference* difference) const;

 private:
  Mapping file_;
  VmmMemory regions_;
  Userfault userfault_;
  UniqueFd socket_;  // open as long as the VM, as in Firecracker
  uint8_t* data_ = nullptr;
  uint64_t page_size_ = 4096;
};

}  // namespace reap::guest
