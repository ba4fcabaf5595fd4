#include "base/crc32c.h"

#include <array>
#include <cstring>

#if defined(__aarch64__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

namespace reap {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are read as they lie in memory");

constexpr uint32_t kPolynomial = 0x82F63B78;

using Table = std::array<uint32_t, 256>;

// tables[k][b] is the checksum state after byte `b` and `k` zero bytes.
constexpr std::array<Table, 8> slicing_tables() {
  std::array<Table, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ (state & 1 ? kPolynomial : 0);
    tables[0][byte] = state;
  }
  for (size_t zeros = 1; zeros < tables.size(); ++zeros) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t state = tables[zeros - 1][byte];
      tables[zeros][byte] = (state >> 8) ^ tables[0][state & 0xFF];
    }
  }
  return tables;
}

constexpr std::array<Table, 8> kSlices = slicing_tables();

uint64_t load(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

uint32_t software(const void* data, size_t size, uint32_t seed) {
  const auto* next = static_cast<const uint8_t*>(data);
  uint32_t state = ~seed;
  for (; size >= 8; size -= 8, next += 8) {
    const uint64_t word = load(next) ^ state;
    state = 0;
    for (unsigned i = 0; i < 8; ++i) state ^= kSlices[7 - i][(word >> (8 * i)) & 0xFF];
  }
  for (; size > 0; --size, ++next) state = (state >> 8) ^ kSlices[0][(state ^ *next) & 0xFF];
  return ~state;
}

bool always() { return true; }

#if defined(__x86_64__) || defined(__aarch64__)

// Inline assembly, not intrinsics: those need a target attribute on every caller, which a template
// shared by both architectures cannot have.
#if defined(__x86_64__)
constexpr char kHardwareName[] = "sse4.2";

bool has_hardware() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("sse4.2");
}

inline uint32_t add_word(uint32_t state, uint64_t word) {
  uint64_t wide = state;
  __asm__("crc32q %1, %0" : "+r"(wide) : "r"(word) : "cc");
  return static_cast<uint32_t>(wide);
}

inline uint32_t add_byte(uint32_t state, uint8_t byte) {
  __asm__("crc32b %1, %0" : "+r"(state) : "r"(byte) : "cc");
  return state;
}
#else
constexpr char kHardwareName[] = "armv8-crc";

bool has_hardware() { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

inline uint32_t add_word(uint32_t state, uint64_t word) {
  __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(state) : "r"(word));
  return state;
}

inline uint32_t add_byte(uint32_t state, uint8_t byte) {
  const uint32_t wide = byte;
  __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(state) : "r"(wide));
  return state;
}
#endif

// The instruction has a latency of three cycles and a throughput of one per cycle, so three streams
// keep it busy. Three times 1360 bytes is a page less two words: the streams of a page are joined
// once.
constexpr size_t kStreamBytes = 1360;

// tables[i][b]: contribution of byte `i` of a state with value `b` after one stream length of zero
// bytes.
constexpr std::array<Table, 4> stream_tables() {
  // Appending zero bytes is linear, so 32 columns, one per bit, define it.
  std::array<uint32_t, 32> columns{};
  for (size_t bit = 0; bit < 32; ++bit) {
    uint32_t state = uint32_t{1} << bit;
    for (size_t i = 0; i < kStreamBytes; ++i) state = (state >> 8) ^ kSlices[0][state & 0xFF];
    columns[bit] = state;
  }
  std::array<Table, 4> tables{};
  for (size_t i = 0; i < 4; ++i) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      for (size_t bit = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) tables[i][byte] ^= columns[8 * i + bit];
      }
    }
  }
  return tables;
}

constexpr std::array<Table, 4> kStreamShift = stream_tables();

inline uint32_t shift_stream(uint32_t state) {
  return kStreamShift[0][state & 0xFF] ^ kStreamShift[1][state >> 8 & 0xFF] ^
         kStreamShift[2][state >> 16 & 0xFF] ^ kStreamShift[3][state >> 24];
}

uint32_t hardware(const void* data, size_t size, uint32_t seed) {
  const auto* next = static_cast<const uint8_t*>(data);
  uint32_t state = ~seed;
  for (; size >= 3 * kStreamBytes; size -= 3 * kStreamBytes, next += 3 * kStreamBytes) {
    uint32_t second = 0;
    uint32_t third = 0;
    for (size_t i = 0; i < kStreamBytes; i += 8) {
      state = add_word(state, load(next + i));
      second = add_word(second, load(next + i + kStreamBytes));
      third = add_word(third, load(next + i + 2 * kStreamBytes));
    }
    state = shift_stream(shift_stream(state) ^ second) ^ third;
  }
  for (; size >= 8; size -= 8, next += 8) state = add_word(state, load(next));
  for (; size > 0; --size, ++next) state = add_byte(state, *next);
  return ~state;
}

#endif

}  // namespace

namespace detail {

const Crc32c kCrc32c[] = {
#if defined(__x86_64__) || defined(__aarch64__)
    {kHardwareName, hardware, has_hardware},
#endif
    {"software", software, always},
};
const size_t kCrc32cCount = sizeof kCrc32c / sizeof kCrc32c[0];

}  // namespace detail

uint32_t crc32c(const void* data, size_t size, uint32_t seed) {
  static const auto function = [] {
    const detail::Crc32c* candidate = detail::kCrc32c;
    while (!candidate->runs_here()) ++candidate;
    return candidate->function;
  }();
  return function(data, size, seed);
}

}  // namespace reap
