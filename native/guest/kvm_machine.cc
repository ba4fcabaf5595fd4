#include "kvm_machine.h"

#if defined(__x86_64__)

#include <fcntl.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <utility>

namespace reap::guest {

namespace {

constexpr uint64_t kCr0ProtectedMode = 1 << 0;
constexpr uint64_t kCr0Paging = 1u << 31;
constexpr uint64_t kCr4PhysicalAddressExtension = 1 << 5;
constexpr uint64_t kEferLongModeEnable = 1 << 8;
constexpr uint64_t kEferLongModeActive = 1 << 10;
constexpr uint8_t kRing = 3;

// In 64-bit mode base and limit have no effect, but VM entry checks them.
kvm_segment flat_segment(uint16_t index, uint8_t type) {
  kvm_segment segment{};
  segment.limit = 0xffffffff;
  segment.selector = index << 3 | kRing;
  segment.dpl = kRing;
  segment.type = type;
  segment.present = 1;
  segment.s = 1;
  segment.g = 1;
  return segment;
}

}  // namespace

Error KvmVcpu::enter_long_mode(uint64_t page_table) {
  kvm_sregs special;
  if (::ioctl(fd_.get(), KVM_GET_SREGS, &special) != 0) {
    return system_error("read a vCPU's special registers", errno);
  }
  special.cr0 |= kCr0ProtectedMode | kCr0Paging;
  special.cr3 = page_table;
  special.cr4 |= kCr4PhysicalAddressExtension;
  special.efer |= kEferLongModeEnable | kEferLongModeActive;
  special.cs = flat_segment(6, 11);  // as in Linux; execute, read, accessed
  special.cs.l = 1;
  kvm_segment data = flat_segment(5, 3);  // read, write, accessed
  data.db = 1;
  special.ds = special.es = special.fs = special.gs = special.ss = data;
  if (::ioctl(fd_.get(), KVM_SET_SREGS, &special) != 0) {
    return system_error("set a vCPU to 64-bit mode", errno);
  }
  return {};
}

Error KvmVcpu::set_registers(const kvm_regs& registers) {
  if (::ioctl(fd_.get(), KVM_SET_REGS, &registers) == 0) return {};
  return system_error("set a vCPU's registers", errno);
}

Error KvmVcpu::registers(kvm_regs* registers) const {
  if (::ioctl(fd_.get(), KVM_GET_REGS, registers) == 0) return {};
  return system_error("read a vCPU's registers", errno);
}

Error KvmVcpu::run() {
  while (::ioctl(fd_.get(), KVM_RUN, 0) != 0) {
    if (errno != EINTR) return system_error("run a vCPU", errno);
  }
  return {};
}

Error KvmMachine::create(KvmMachine* machine) {
  const UniqueFd kvm(::open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (!kvm) return system_error("open /dev/kvm", errno);
  const int version = ::ioctl(kvm.get(), KVM_GET_API_VERSION, 0);
  if (version != KVM_API_VERSION) {
    return {"KVM's API has version " + std::to_string(version) + ", not 12"};
  }
  KvmMachine created;
  created.state_bytes_ = ::ioctl(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (created.state_bytes_ < static_cast<int>(sizeof(kvm_run))) {
    return system_error("learn the size of a vCPU's state", errno);
  }
  created.fd_.reset(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!created.fd_) return system_error("create a VM", errno);
  *machine = std::move(created);
  return {};
}

Error KvmMachine::add_memory(uint64_t guest_address, void* data, uint64_t bytes) {
  kvm_userspace_memory_region region{};
  region.slot = slots_;
  region.guest_phys_addr = guest_address;
  region.memory_size = bytes;
  region.userspace_addr = reinterpret_cast<uintptr_t>(data);
  if (::ioctl(fd_.get(), KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return system_error("give memory to a VM", errno);
  }
  slots_++;
  return {};
}

Error KvmMachine::add_vcpu(KvmVcpu* vcpu) {
  KvmVcpu added;
  added.fd_.reset(::ioctl(fd_.get(), KVM_CREATE_VCPU, vcpus_));
  if (!added.fd_) return system_error("create a vCPU", errno);
  const auto bytes = static_cast<size_t>(state_bytes_);
  void* state = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, added.fd_.get(), 0);
  if (state == MAP_FAILED) return system_error("map a vCPU's state", errno);
  added.state_ = Mapping::adopt(state, bytes);
  vcpus_++;
  *vcpu = std::move(added);
  return {};
}

}  // namespace reap::guest

#endif
