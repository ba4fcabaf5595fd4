// Expected content of the fake VMM's memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "answer.h"
#include "base/posix.h"
#include "vmm_memory.h"

namespace reap::guest {

// The memory file, with zeros for removed pages, then with the bytes that the guest wrote.
class Expectation {
 public:
  // `removed` lists pages and ranges, both ends included: "3,8-15". `written` lists the first
  // bytes of pages: "3:255,9:1". `memory` must outlive it.
  static Error make(const VmmMemory& memory, const std::string& memory_file,
                    const std::string& removed, const std::string& written,
                    Expectation* expectation);

  // Touches the page. Threads may share one expectation.
  bool matches(uint64_t page) const;

  static bool is_zero(const uint8_t* page, size_t bytes);

 private:
  const VmmMemory* memory_ = nullptr;
  Mapping file_;
  std::vector<bool> removed_;
  std::map<uint64_t, uint8_t> written_;
};

}  // namespace reap::guest
