// A KVM virtual machine: memory and vCPUs in 64-bit mode, without devices or interrupts. x86-64
// only.
#pragma once

#if defined(__x86_64__)

#include <linux/kvm.h>

#include <cstdint>

#include "answer.h"
#include "base/posix.h"

namespace reap::guest {

// A vCPU may be used by one thread at a time.
class KvmVcpu {
 public:
  // Enters 64-bit mode at the next run, in ring 3. There is no IDT: an exception shuts the machine
  // down (KVM_EXIT_SHUTDOWN).
  //
  // Ring 3, because a KVM without hardware support runs user code natively, and emulates each
  // instruction of a kernel that was not made for it.
  Error enter_long_mode(uint64_t page_table);
  Error set_registers(const kvm_regs& registers);
  Error registers(kvm_regs* registers) const;
  // Returns at the guest's next exit, described by `state()`.
  Error run();
  const kvm_run& state() const { return *reinterpret_cast<const kvm_run*>(state_.data()); }

 private:
  friend class KvmMachine;
  UniqueFd fd_;
  Mapping state_;
};

class KvmMachine {
 public:
  static Error create(KvmMachine* machine);
  // `data` must outlive the machine.
  Error add_memory(uint64_t guest_address, void* data, uint64_t bytes);
  Error add_vcpu(KvmVcpu* vcpu);

 private:
  UniqueFd fd_;
  int state_bytes_ = 0;
  uint32_t slots_ = 0;
  uint32_t vcpus_ = 0;
};

}  // namespace reap::guest

#endif
