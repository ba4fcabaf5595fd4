// Digests and pseudo-random numbers, none of them cryptographic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>

namespace reap::guest {

// A bijection in which every input bit affects every output bit (the finalizer of splitmix64).
inline uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() { return mix(state_ += 0x9e3779b97f4a7c15); }
  uint64_t below(uint64_t bound) { return next() % bound; }

 private:
  uint64_t state_;
};

// A permutation of [0, count), without memory for it.
class Permutation {
 public:
  Permutation(uint64_t count, uint64_t seed)
      : count_(count), start_(mix(seed) % count), stride_(mix(seed + 1) % count | 1) {
    while (std::gcd(stride_, count_) != 1) stride_ += 2;
  }
  uint64_t operator[](uint64_t i) const { return (start_ + i * stride_) % count_; }

 private:
  uint64_t count_, start_, stride_;
};

// A 64-bit digest of a stream of words. Each step is a bijection, so one wrong word always changes
// the digest. Four lanes, so that it runs at memory speed.
class Digest {
 public:
  void add(uint64_t word) { step(0, word); }
  void add(const void* data, size_t word_count) {
    const auto* words = static_cast<const uint64_t*>(data);
    const size_t in_fours = word_count / kLanes * kLanes;
    for (size_t i = 0; i < in_fours; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; lane++) step(lane, words[i + lane]);
    }
    for (size_t i = in_fours; i < word_count; i++) step(0, words[i]);
  }
  uint64_t value() const {
    uint64_t value = 0;
    for (uint64_t lane : lanes_) value = mix(value ^ lane);
    return value;
  }

 private:
  void step(size_t lane, uint64_t word) {
    lanes_[lane] = ((lanes_[lane] ^ word) + (lane + 1)) * 0x9e3779b97f4a7c15;
  }

  static constexpr size_t kLanes = 4;
  uint64_t lanes_[kLanes] = {1, 2, 3, 4};
};

// Digest of one page, which test/support/fake-vmm.ts also computes: FNV-1a, 32 bits, over the
// page's little-endian 32-bit words. The loads are atomic because guest threads may share the page.
inline uint32_t page_digest(const void* page, size_t bytes) {
  const auto* words = static_cast<const uint32_t*>(page);
  uint32_t digest = 0x811c9dc5;
  for (size_t i = 0; i < bytes / sizeof(uint32_t); i++) {
    digest = (digest ^ __atomic_load_n(&words[i], __ATOMIC_RELAXED)) * 0x01000193;
  }
  return digest;
}

}  // namespace reap::guest
