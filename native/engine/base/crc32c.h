// CRC-32C (Castagnoli): the checksum of the working-set file and of a disk image's sampled pages.
#pragma once

#include <cstddef>
#include <cstdint>

namespace reap {

// Reflected polynomial 0x82F63B78, initial value and final xor all ones: crc32c("123456789") is
// 0xE3069283. With the checksum of preceding bytes as `seed`, returns the checksum of both
// together.
uint32_t crc32c(const void* data, size_t size, uint32_t seed = 0);

namespace detail {

struct Crc32c {
  const char* name;
  uint32_t (*function)(const void* data, size_t size, uint32_t seed);
  bool (*runs_here)();
};

// All compiled implementations, fastest first. The last one, `software`, runs everywhere.
extern const Crc32c kCrc32c[];
extern const size_t kCrc32cCount;

}  // namespace detail
}  // namespace reap
