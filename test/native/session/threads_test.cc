// Limits of threads, as of RLIMIT_NPROC and pids.max.
#include <dirent.h>

#include <cerrno>
#include <memory>
#include <string>

#include "base/test_hooks.h"
#include "session/engine.h"
#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

// Threads of this process.
int threads() {
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(::opendir("/proc/self/task"), ::closedir);
  int count = 0;
  while (const dirent* task = ::readdir(tasks.get())) count += task->d_name[0] != '.';
  return count;
}

}  // namespace

TEST(an_engine_that_lacks_any_of_its_threads_does_not_start_and_leaves_none) {
  const fixture::Hooks hooks;
  const int before = threads();
  int available = 0;
  for (bool started = false; !started; ++available) {
    check::about = std::to_string(available) + " threads";
    int left = available;
    reap::hooks::refuses_thread = [&left] { return left-- == 0; };
    reap::Failure failure;
    const auto engine = reap::Engine::create([](reap::Event&&) {}, &failure);
    started = engine != nullptr;
    if (started) {
      engine->shutdown();
      break;
    }
    CHECK(failure.code == reap::ErrorCode::native_unavailable);
    CHECK_EQ(failure.err, -EAGAIN);
    CHECK_EQ(std::string(failure.syscall), "pthread_create");
    // A thread that has ended is listed for a moment more.
    CHECK(fixture::in_time([&] { return threads() <= before; }));
  }
  check::about.clear();
  CHECK(available >= 8);
}
