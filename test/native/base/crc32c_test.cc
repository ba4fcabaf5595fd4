#include "base/crc32c.h"

#include <string>
#include <vector>

#include "support/check.h"

namespace {

std::vector<uint8_t> noise(size_t size) {
  std::vector<uint8_t> bytes(size);
  uint64_t state = 1;
  for (uint8_t& byte : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<uint8_t>(state >> 56);
  }
  return bytes;
}

uint32_t bit_by_bit(const uint8_t* bytes, size_t size) {
  uint32_t state = ~0u;
  for (size_t i = 0; i < size; ++i) {
    state ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ (state & 1 ? 0x82F63B78 : 0);
  }
  return ~state;
}

}  // namespace

TEST(crc32c_gives_the_published_values) {
  const std::string digits = "123456789";
  const std::vector<uint8_t> zeros(32, 0), ones(32, 0xFF);
  CHECK_EQ(reap::crc32c(digits.data(), digits.size()), 0xE3069283u);
  CHECK_EQ(reap::crc32c(zeros.data(), zeros.size()), 0x8A9136AAu);  // RFC 3720, B.4
  CHECK_EQ(reap::crc32c(ones.data(), ones.size()), 0x62A8AB43u);
  CHECK_EQ(reap::crc32c(nullptr, 0), 0u);
}

TEST(every_crc32c_agrees_at_every_length_and_alignment) {
  const std::vector<uint8_t> bytes = noise(3 * 4096 + 64);
  for (size_t size :
       {0, 1, 7, 8, 9, 63, 1360, 4079, 4080, 4081, 4087, 4096, 8159, 8160, 8192, 12240, 12288}) {
    for (size_t start = 0; start < 9; ++start) {
      const uint32_t want = bit_by_bit(bytes.data() + start, size);
      for (size_t i = 0; i < reap::detail::kCrc32cCount; ++i) {
        const reap::detail::Crc32c& one = reap::detail::kCrc32c[i];
        if (one.runs_here()) CHECK_EQ(one.function(bytes.data() + start, size, 0), want);
      }
    }
  }
}

TEST(a_crc32c_continues_from_a_previous_one) {
  const std::vector<uint8_t> bytes = noise(10000);
  const uint32_t whole = reap::crc32c(bytes.data(), bytes.size());
  for (size_t i = 0; i < reap::detail::kCrc32cCount; ++i) {
    const reap::detail::Crc32c& one = reap::detail::kCrc32c[i];
    if (!one.runs_here()) continue;
    for (size_t cut : {0, 1, 8, 4080, 4096, 5000, 9999, 10000}) {
      const uint32_t first = one.function(bytes.data(), cut, 0);
      CHECK_EQ(one.function(bytes.data() + cut, bytes.size() - cut, first), whole);
    }
  }
}
