#include "machine.h"

#if defined(__x86_64__)

namespace reap::microvm {

namespace {

constexpr uint16_t kConsole = 0x3f8;
constexpr uint16_t kInterruptEnable = kConsole + 1;
constexpr uint16_t kLineStatus = kConsole + 5;
constexpr uint8_t kDataReady = 1;
constexpr uint32_t kConsoleLine = 4;

constexpr uint64_t kLocalApic = 0xfee00000;
constexpr uint64_t kSpurious = kLocalApic + 0xf0;
constexpr uint64_t kCommandLow = kLocalApic + 0x300;
constexpr uint32_t kToAllOthers = 3 << 18;
constexpr uint32_t kAssert = 1 << 14;
constexpr uint32_t kPending = 1 << 12;
constexpr uint32_t kInit = 5 << 8;
constexpr uint32_t kStartUp = 6 << 8;
constexpr uint64_t kIoApic = 0xfec00000;
constexpr uint64_t kIoApicData = kIoApic + 0x10;

constexpr uint32_t kFirstLineVector = 0x20;
constexpr uint32_t kCallVector = 0x40;
constexpr uint32_t kSpuriousVector = 0xff;
constexpr size_t kExceptions = 32;

/** Below 1 MiB, and unused by the boot protocol. */
constexpr uint64_t kTrampoline = 0x10000;

struct [[gnu::packed]] Gate {
  uint16_t offset_low;
  uint16_t selector;
  uint8_t stack;
  uint8_t type;
  uint16_t offset_middle;
  uint32_t offset_high;
  uint32_t reserved;
};

struct [[gnu::packed]] TablePointer {
  uint16_t limit;
  uint64_t address;
};

Gate gates[256];

void outb(uint16_t port, uint8_t value) {
  __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

uint8_t inb(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

template <typename T>
T load(uint64_t address) {
  return *reinterpret_cast<const volatile T*>(address);
}

template <typename T>
void store(uint64_t address, T value) {
  *reinterpret_cast<volatile T*>(address) = value;
}

void set_gate(size_t vector, uint64_t handler) {
  uint16_t selector;
  __asm__("mov %%cs, %0" : "=r"(selector));
  constexpr uint8_t kInterruptGate = 0x8e;
  gates[vector] = {static_cast<uint16_t>(handler),
                   selector,
                   0,
                   kInterruptGate,
                   static_cast<uint16_t>(handler >> 16),
                   static_cast<uint32_t>(handler >> 32),
                   0};
}

void load_gates() {
  const TablePointer pointer{sizeof gates - 1, reinterpret_cast<uint64_t>(gates)};
  __asm__ volatile("lidt %0" ::"m"(pointer));
}

void enable_local_apic() { register_at(kSpurious) = 0x100 | kSpuriousVector; }

/** An interprocessor interrupt to all other processors. */
void send_to_others(uint32_t command) {
  register_at(kCommandLow) = kToAllOthers | kAssert | command;
  while (register_at(kCommandLow) & kPending) {
  }
}

/** Number of processors in the table of Intel's multiprocessor specification. */
uint64_t listed_processors() {
  constexpr uint32_t kPointerMark = 0x5f504d5f;  // "_MP_"
  constexpr uint64_t kEntries = 44;
  // VMMs put their tables here; Firecracker puts this one first.
  for (uint64_t at = 0x9fc00; at < 0xb0000; at += 16) {
    if (load<uint32_t>(at) != kPointerMark) continue;
    const uint64_t table = load<uint32_t>(at + 4);
    const uint16_t entries = load<uint16_t>(table + 34);
    uint64_t entry = table + kEntries;
    uint64_t processors = 0;
    // Processor entries come first, and have 20 bytes.
    for (uint16_t i = 0; i < entries && load<uint8_t>(entry) == 0; i++, entry += 20) processors++;
    return processors;
  }
  return 1;
}

uint64_t processors = 1;
void (*volatile shared_work)(uint64_t);
volatile uint64_t calls;
volatile uint64_t finished;

}  // namespace

extern "C" {
// Defined in entry.S.
extern const char on_interrupt[];
extern const char on_exception[];
extern const char trampoline[];
extern const char trampoline_end[];

// Used by entry.S.
[[gnu::aligned(kPageBytes)]] uint64_t page_map[512];
[[gnu::aligned(16)]] uint8_t other_stacks[kMaxProcessors][kPageBytes];
volatile uint64_t processors_entered;

[[noreturn]] void report_exception(uint64_t vector, uint64_t address) {
  say("WRONG: exception ");
  say_number(vector);
  say(" at ");
  say_number(address);
  give_up("");
}

[[noreturn]] void start_other(uint64_t index) {
  load_gates();
  enable_local_apic();
  uint64_t seen = 0;
  __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    while (calls == seen) halt_until_interrupt();
    seen++;
    shared_work(index + 1);
    __atomic_add_fetch(&finished, 1, __ATOMIC_SEQ_CST);
  }
}
}

namespace {
[[gnu::aligned(kPageBytes)]] uint64_t directory_pointers[512];
[[gnu::aligned(kPageBytes)]] uint64_t directories[kMappedBytes >> 30][512];
}  // namespace

void say(const char* text) {
  while (*text != 0) outb(kConsole, *text++);
}

void say_number(uint64_t value) {
  char digits[21];
  char* at = digits + sizeof digits - 1;
  *at = 0;
  do {
    *--at = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  say(at);
}

void give_up(const char* text) {
  say(text);
  say("\n");
  for (;;) __asm__ volatile("cli; hlt");
}

void set_up_console() {
  outb(kInterruptEnable, kDataReady);
  enable_line(kConsoleLine);
}

uint8_t next_character() {
  while ((inb(kLineStatus) & kDataReady) == 0) halt_until_interrupt();
  return inb(kConsole);
}

size_t BootParameters::memory(uint64_t begin, uint64_t max_address,
                              Span (&spans)[kMaxSpans]) const {
  constexpr uint64_t kCount = 0x1e8;
  constexpr uint64_t kTable = 0x2d0;
  constexpr uint64_t kEntryBytes = 20;
  constexpr uint32_t kUsable = 1;
  size_t found = 0;
  const uint8_t count = load<uint8_t>(address_ + kCount);
  for (uint8_t i = 0; i < count && found < kMaxSpans; i++) {
    const uint64_t entry = address_ + kTable + i * kEntryBytes;
    uint64_t from = load<uint64_t>(entry);
    uint64_t to = from + load<uint64_t>(entry + 8);
    if (from < begin) from = begin;
    if (to > max_address) to = max_address;
    if (load<uint32_t>(entry + 16) != kUsable || from >= to) continue;
    spans[found++] = {from, (to - from) / kPageBytes};
  }
  return found;
}

const char* BootParameters::command_line() const {
  return reinterpret_cast<const char*>(static_cast<uint64_t>(load<uint32_t>(address_ + 0x228)));
}

void set_up_paging() {
  constexpr uint64_t kPresentWritable = 3;
  constexpr uint64_t kLarge = 1 << 7;
  for (uint64_t i = 0; i < kMappedBytes >> 30; i++) {
    directory_pointers[i] = reinterpret_cast<uint64_t>(directories[i]) | kPresentWritable;
    for (uint64_t j = 0; j < 512; j++) {
      directories[i][j] = (i << 30 | j << 21) | kLarge | kPresentWritable;
    }
  }
  page_map[0] = reinterpret_cast<uint64_t>(directory_pointers) | kPresentWritable;
  __asm__ volatile("mov %0, %%cr3" ::"r"(page_map) : "memory");
}

void set_up_interrupts() {
  for (size_t i = 0; i < 256; i++) {
    set_gate(i, i < kExceptions ? reinterpret_cast<uint64_t>(on_exception) + i * 16
                                : reinterpret_cast<uint64_t>(on_interrupt));
  }
  load_gates();
  // The legacy controllers use the same lines.
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
  enable_local_apic();
}

void enable_line(uint32_t line) {
  register_at(kIoApic) = 0x10 + 2 * line + 1;
  register_at(kIoApicData) = 0;
  register_at(kIoApic) = 0x10 + 2 * line;
  register_at(kIoApicData) = kFirstLineVector + line;
}

uint64_t start_processors() {
  const uint64_t listed = listed_processors();
  const uint64_t others = (listed < kMaxProcessors ? listed : kMaxProcessors) - 1;
  if (listed > kMaxProcessors) give_up("WRONG: more processors than there are stacks for");
  if (others == 0) return 1;
  for (const char* from = trampoline; from < trampoline_end; from++) {
    store<char>(kTrampoline + (from - trampoline), *from);
  }
  send_to_others(kInit);
  send_to_others(kStartUp | kTrampoline >> 12);
  while (finished < others) __asm__ volatile("pause");
  processors = listed;
  return listed;
}

void run_on_all(void (*work)(uint64_t)) {
  shared_work = work;
  finished = 0;
  memory_barrier();
  calls = calls + 1;
  if (processors > 1) send_to_others(kCallVector);
  work(0);
  while (finished < processors - 1) __asm__ volatile("pause");
}

}  // namespace reap::microvm

#endif  // defined(__x86_64__)
