// A VMM that only touches its pages, one by one.
#pragma once

#include <cstdint>
#include <string>

#include "guest/answer.h"

namespace reap::bench {

// Connects to the fault handler at `socket` with `memory_bytes` of empty memory, touches the first
// `pages` pages, and records the wait for each. Sleeps for `pause_us` after each.
guest::Error touch_each(const std::string& socket, uint64_t memory_bytes, uint64_t pages,
                        uint64_t* waited_ns, uint64_t pause_us = 0);

}  // namespace reap::bench
