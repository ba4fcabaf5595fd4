#include "kvm_replay.h"

#if defined(__x86_64__)

#include <cerrno>
#include <cstring>

// The guest. It has neither stack nor memory: a vCPU starts with all inputs in registers, and
// leaves its result there.
//
//   rsi  next entry              rcx  entries left         rdx  bytes between entries
//   r8   spins after an entry    r9   start of memory
//   rbx  wrong entries           r10  first wrong entry    r12  word found there
//
// It calls its VMM by a store to an address without memory: at 1 GiB when it has finished, 8 bytes
// higher to give memory back, with the offset in rdi and the bytes in rax.
asm(R"(
  .pushsection .rodata
  .intel_syntax noprefix
reap_replay_begin:
  test rcx, rcx
  jz .Ldone
.Lnext:
  mov rdi, [rsi]
  mov rax, [rsi + 8]
  mov rbp, rdi
  and rbp, -8
  add rbp, r9
  test dil, 2
  jnz .Lgive_back
  mov r11, rax
  test dil, 1
  jnz .Lwrite
  mov rax, [rbp]
  cmp rax, r11
  jne .Lwrong
  jmp .Lcompute
.Lwrite:                          # in one access, so that the page's fault is one for writing
  not r11
  lock cmpxchg [rbp], r11
  je .Lcompute
  cmp rax, r11                    # another vCPU was here before
  je .Lcompute
.Lwrong:
  test rbx, rbx
  cmovz r10, rsi
  cmovz r12, rax
  inc rbx
  jmp .Lcompute
.Lgive_back:
  mov [0x40000008], eax
.Lcompute:
  mov rbp, r8
  test rbp, rbp
  jz .Ladvance
.Lspin:
  dec rbp
  jnz .Lspin
.Ladvance:
  add rsi, rdx
  dec rcx
  jnz .Lnext
.Ldone:
  mov [0x40000000], eax
  ud2
reap_replay_end:
  .att_syntax
  .popsection
)");

extern "C" {
extern const uint8_t reap_replay_begin[];
extern const uint8_t reap_replay_end[];
}

namespace reap::guest {

namespace {

// Guest physical addresses, mapped one to one by its page tables. Ours are below guest memory,
// which begins above everything that a PC has below 4 GiB.
constexpr uint64_t kCode = 0x1000;
constexpr uint64_t kTopTable = 0x2000;
constexpr uint64_t kPointerTable = 0x3000;
constexpr uint64_t kDirectories = 0x4000;  // one page for each GiB
constexpr uint64_t kDone = 1 << 30;        // no memory
constexpr uint64_t kGiveBack = kDone + 8;
constexpr uint64_t kMemory = 4ull << 30;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kLargePage = 2 << 20;
constexpr uint64_t kGib = 1 << 30;
// A vCPU without CPUID data has 36 bits of physical address.
constexpr uint64_t kMaxMemoryBytes = (1ull << 36) - kMemory;

// Accessed and dirty from the start, so that the CPU does not write to the tables.
constexpr uint64_t kUserPage = 0x67;  // present, writable
constexpr uint64_t kLarge = 0x80;

uint64_t align_up(uint64_t value, uint64_t step) { return (value + step - 1) / step * step; }

uint64_t gibs(uint64_t bytes) { return (bytes + kGib - 1) / kGib; }

}  // namespace

Error KvmReplay::prepare(const KvmTrace& trace, uint64_t spins) {
  if (trace.memory_bytes == 0 || trace.memory_bytes > kMaxMemoryBytes) {
    return {"guest memory must have from 1 byte to 60 GiB", -EINVAL};
  }
  memory_bytes_ = trace.memory_bytes;
  spins_ = spins;
  entries_address_ = kDirectories + (2 + gibs(memory_bytes_)) * kPage;
  const uint64_t trace_bytes = trace.entries.size() * sizeof(TraceEntry);
  const uint64_t own_bytes = align_up(entries_address_ + trace_bytes, kPage);
  if (own_bytes > kGib) return {"the trace has too many entries", -EINVAL};
  own_ = Mapping::anonymous(own_bytes);
  if (!own_) return system_error("map memory for the trace", errno);

  std::memcpy(own_.data() + kCode, reap_replay_begin,
              static_cast<size_t>(reap_replay_end - reap_replay_begin));
  if (trace_bytes > 0) {
    std::memcpy(own_.data() + entries_address_, trace.entries.data(), trace_bytes);
  }
  write_page_tables(memory_bytes_);
  return {};
}

void KvmReplay::write_page_tables(uint64_t memory_bytes) {
  const auto table = [this](uint64_t address) {
    return reinterpret_cast<uint64_t*>(own_.data() + address);
  };
  uint64_t directory = kDirectories;
  const auto map_gib = [&](uint64_t address) {
    table(kPointerTable)[address / kGib] = directory | kUserPage;
    for (uint64_t i = 0; i < kGib / kLargePage; i++) {
      table(directory)[i] = (address + i * kLargePage) | kUserPage | kLarge;
    }
    directory += kPage;
  };
  table(kTopTable)[0] = kPointerTable | kUserPage;
  map_gib(0);
  map_gib(kDone);
  for (uint64_t i = 0; i < gibs(memory_bytes); i++) map_gib(kMemory + i * kGib);
}

Error KvmReplay::create(void* memory, const std::vector<ReplayShare>& shares) {
  if (Error error = KvmMachine::create(&machine_)) return error;
  if (Error error = machine_.add_memory(0, own_.data(), own_.size())) return error;
  if (Error error = machine_.add_memory(kMemory, memory, memory_bytes_)) return error;
  shares_ = shares;
  vcpus_.resize(shares.size());
  for (size_t i = 0; i < shares.size(); i++) {
    KvmVcpu& vcpu = vcpus_[i];
    if (Error error = machine_.add_vcpu(&vcpu)) return error;
    if (Error error = vcpu.enter_long_mode(kTopTable)) return error;
    kvm_regs registers{};
    registers.rip = kCode;
    registers.rflags = 2;  // the bit that is always set
    registers.rsi = entries_address_ + shares[i].first * sizeof(TraceEntry);
    registers.rcx = shares[i].count;
    registers.rdx = shares[i].stride * sizeof(TraceEntry);
    registers.r8 = spins_;
    registers.r9 = kMemory;
    if (Error error = vcpu.set_registers(registers)) return error;
  }
  return {};
}

Error KvmReplay::run(size_t index, const GiveBack& give_back, ReplayResult* result) {
  KvmVcpu& vcpu = vcpus_[index];
  for (;;) {
    if (Error error = vcpu.run()) return error;
    kvm_regs registers;
    if (Error error = vcpu.registers(&registers)) return error;
    const kvm_run& state = vcpu.state();
    const uint64_t store = state.exit_reason == KVM_EXIT_MMIO ? state.mmio.phys_addr : 0;
    if (store == kDone) {
      result->replayed = shares_[index].count - registers.rcx;
      result->wrong = registers.rbx;
      result->first_wrong = (registers.r10 - entries_address_) / sizeof(TraceEntry);
      result->found = registers.r12;
      return {};
    }
    // KVM reports memory that it cannot fault in as EFAULT, unless it was emulating the access:
    // then it reports a device access.
    if (store >= kMemory) return system_error("run a vCPU", EFAULT);
    if (store != kGiveBack) {
      return {"vCPU " + std::to_string(index) + " stopped for reason " +
              std::to_string(state.exit_reason) + " of KVM, at 0x" + hex(registers.rip, 1)};
    }
    const TraceEntry entry{registers.rdi, registers.rax};
    if (Error error = give_back(entry.offset(), entry.word)) return error;
  }
}

}  // namespace reap::guest

#endif
