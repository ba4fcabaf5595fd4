// Number of cores that the process may keep busy.
#include "base/cores.h"

#include <sched.h>

#include <thread>

#include "support/check.h"

TEST(cores_outside_the_affinity_mask_do_not_count) {
  cpu_set_t before;
  CHECK_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  const auto all = static_cast<unsigned>(CPU_COUNT(&before));
  CHECK(reap::usable_cores() >= 1);
  CHECK(reap::usable_cores() <= all);
  // Affinity is per thread.
  std::thread alone([&] {
    cpu_set_t first;
    CPU_ZERO(&first);
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (!CPU_ISSET(core, &before)) continue;
      CPU_SET(core, &first);
      break;
    }
    CHECK_EQ(::sched_setaffinity(0, sizeof first, &first), 0);
    CHECK_EQ(reap::usable_cores(), 1);
  });
  alone.join();
}
