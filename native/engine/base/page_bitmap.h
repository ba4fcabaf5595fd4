// A bitmap with one bit per page, settable from many threads. Only touched parts use memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/posix.h"

namespace reap {

class PageBitmap {
 public:
  PageBitmap() = default;
  explicit PageBitmap(uint64_t pages)
      : words_(Mapping::anonymous((pages + 63) / 64 * sizeof(uint64_t))) {}

  explicit operator bool() const { return static_cast<bool>(words_); }

  bool test(uint64_t page) const {
    return (word(page).load(std::memory_order_relaxed) >> (page % 64)) & 1;
  }
  // Returns true if the bit was clear before.
  bool set(uint64_t page) {
    const uint64_t bit = uint64_t{1} << (page % 64);
    return !(word(page).fetch_or(bit, std::memory_order_relaxed) & bit);
  }
  void set(uint64_t first, uint64_t end) { update<true>(first, end); }
  void clear(uint64_t first, uint64_t end) { update<false>(first, end); }

 private:
  std::atomic<uint64_t>& word(uint64_t page) const {
    return reinterpret_cast<std::atomic<uint64_t>*>(words_.data())[page / 64];
  }

  template <bool kSet>
  void update(uint64_t first, uint64_t end) {
    while (first < end) {
      const uint64_t in_word = std::min<uint64_t>(64 - first % 64, end - first);
      const uint64_t run = in_word == 64 ? ~uint64_t{0} : (uint64_t{1} << in_word) - 1;
      const uint64_t mask = run << (first % 64);
      // A guest may give the same memory back repeatedly: bits that have the value already are only
      // read, which keeps the cache line shared.
      const uint64_t now = word(first).load(std::memory_order_relaxed) & mask;
      if constexpr (kSet) {
        if (now != mask) word(first).fetch_or(mask, std::memory_order_relaxed);
      } else {
        if (now != 0) word(first).fetch_and(~mask, std::memory_order_relaxed);
      }
      first += in_word;
    }
  }

  Mapping words_;
};

}  // namespace reap
