// Processor, interrupt controllers and serial console of a guest without a kernel.
#ifndef REAP_GUEST_MICROVM_MACHINE_H_
#define REAP_GUEST_MICROVM_MACHINE_H_

#include <cstddef>
#include <cstdint>

namespace reap::microvm {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMaxProcessors = 8;

/** An unused range of memory. */
struct Span {
  uint64_t begin;
  uint64_t pages;
};

constexpr size_t kMaxSpans = 4;

inline volatile uint32_t& register_at(uint64_t address) {
  return *reinterpret_cast<volatile uint32_t*>(address);
}

/** Compiler barrier: a device or another processor accesses this memory. */
inline void memory_barrier() { __asm__ volatile("mfence" ::: "memory"); }

void set_up_console();
void say(const char* text);
void say_number(uint64_t value);
/** The next character from the console. The processor halts until there is one. */
uint8_t next_character();

/** Prints the message, and halts for ever. */
[[noreturn]] void give_up(const char* text);

/** Description of the machine by the VMM, in Linux's boot protocol. */
class BootParameters {
 public:
  explicit BootParameters(uint64_t address) : address_(address) {}

  /** The memory from `begin` to `max_address`. Returns the number of spans. */
  size_t memory(uint64_t begin, uint64_t max_address, Span (&spans)[kMaxSpans]) const;
  const char* command_line() const;

 private:
  uint64_t address_;
};

/** Maps the first 8 GiB one to one, with pages of 2 MiB. */
constexpr uint64_t kMappedBytes = 8ULL << 30;
void set_up_paging();

/** Interrupts go to the first processor, and only wake it. */
void set_up_interrupts();
/** Enables a device's interrupt, edge-triggered, on this line of the controller. */
void enable_line(uint32_t line);
extern "C" void halt_until_interrupt();

/** Starts the other processors that the VMM has listed, and returns how many run now, with this
 * one. */
uint64_t start_processors();
/** Has each processor run `work(number)`, this one as number 0, and returns when all have done it.
 */
void run_on_all(void (*work)(uint64_t));

}  // namespace reap::microvm

#endif  // REAP_GUEST_MICROVM_MACHINE_H_
