// The processor, its interrupt controllers and the serial console, of a guest that has no kernel.
#ifndef REAP_GUEST_MICROVM_MACHINE_H_
#define REAP_GUEST_MICROVM_MACHINE_H_

#include <cstddef>
#include <cstdint>

namespace reap::microvm {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kMaxProcessors = 8;

/** A run of memory that nobody else uses. */
struct Span {
  uint64_t begin;
  uint64_t pages;
};

constexpr size_t kMaxSpans = 4;

inline volatile uint32_t& register_at(uint64_t address) {
  return *reinterpret_cast<volatile uint32_t*>(address);
}

/** Compilers do not see that a device or another processor reads and writes memory. */
inline void memory_barrier() { __asm__ volatile("mfence" ::: "memory"); }

void set_up_console();
void say(const char* text);
void say_number(uint64_t value);
/** The next character from the console. The processor halts until there is one. */
uint8_t next_character();

/** Says so, and halts for good. */
[[noreturn]] void give_up(const char* text);

/** What the VMM says of the machine, by Linux's boot protocol. */
class BootParameters {
 public:
  explicit BootParameters(uint64_t address) : address_(address) {}

  /** The memory from `begin` on, up to `max_address`. Returns how many spans there are. */
  size_t memory(uint64_t begin, uint64_t max_address, Span (&spans)[kMaxSpans]) const;
  const char* command_line() const;

 private:
  uint64_t address_;
};

/** Maps the first 8 GiB one to one, with pages of 2 MiB. */
constexpr uint64_t kMappedBytes = 8ULL << 30;
void set_up_paging();

/** Interrupts come to the first processor, and only wake it. */
void set_up_interrupts();
/** Lets the interrupt of a device through: its edge, on this line of the controller. */
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
