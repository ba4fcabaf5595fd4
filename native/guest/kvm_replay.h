// A VM that replays a trace: its code, its address space, and the results of its vCPUs. x86-64
// only.
#pragma once

#if defined(__x86_64__)

#include <cstdint>
#include <functional>
#include <vector>

#include "answer.h"
#include "base/posix.h"
#include "kvm_machine.h"
#include "kvm_trace.h"

namespace reap::guest {

// The entries that a vCPU replays: every `stride`th from `first` on.
struct ReplayShare {
  uint64_t first = 0;
  uint64_t count = 0;
  uint64_t stride = 1;
};

struct ReplayResult {
  uint64_t replayed = 0;     // entries
  uint64_t wrong = 0;        // entries without their expected word
  uint64_t first_wrong = 0;  // the first of these
  uint64_t found = 0;        // the word found there
};

class KvmReplay {
 public:
  // Gives pages of guest memory back; called on a vCPU's thread at its guest's request.
  using GiveBack = std::function<Error(uint64_t offset, uint64_t bytes)>;

  // Prepares what the guest needs in addition to its memory. `spins` is the number of iterations of
  // an empty loop after each entry.
  Error prepare(const KvmTrace& trace, uint64_t spins);
  // Creates the VM. `memory` has the size given in the trace, and must outlive this object.
  Error create(void* memory, const std::vector<ReplayShare>& shares);
  // Runs a vCPU on the calling thread until its share is done.
  Error run(size_t vcpu, const GiveBack& give_back, ReplayResult* result);

 private:
  void write_page_tables(uint64_t memory_bytes);

  Mapping own_;  // guest memory owned by the VM: code, page tables, trace
  uint64_t memory_bytes_ = 0;
  uint64_t entries_address_ = 0;
  uint64_t spins_ = 0;
  KvmMachine machine_;
  std::vector<KvmVcpu> vcpus_;
  std::vector<ReplayShare> shares_;
};

}  // namespace reap::guest

#endif
