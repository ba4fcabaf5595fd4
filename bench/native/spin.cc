// A neighbour that occupies a core.
#include "options.h"
#include "report.h"

namespace reap::bench {

namespace {

[[noreturn]] int run(const Options&) {
  print(event("spinning", now_ns()));
  for (volatile uint64_t turns = 0;;) turns = turns + 1;
}

}  // namespace

const Command kSpin{"spin", "an endless loop, until it is killed", {}, run};

}  // namespace reap::bench
