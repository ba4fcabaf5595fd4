#include "base/thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>

#include "support/check.h"
#include "support/guest_fixture.h"

TEST(a_thread_pool_does_much_short_work_on_a_few_threads) {
  std::mutex mutex;
  std::set<pid_t> threads;
  std::atomic<int> done{0};
  for (int i = 0; i < 64; ++i) {
    const int error = reap::ThreadPool::shared().run([&] {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        threads.insert(::gettid());
      }
      ++done;
    });
    CHECK_EQ(error, 0);
  }
  fixture::eventually([&] { return done == 64; });
  CHECK(threads.size() <= 8);
}

TEST(a_thread_pool_does_work_while_other_work_hangs) {
  std::mutex storage;
  std::atomic<int> hung{0};
  std::atomic<int> answered{0};
  {
    const std::lock_guard<std::mutex> hangs(storage);
    for (int i = 0; i < 16; ++i) {
      reap::ThreadPool::shared().run([&] {
        ++hung;
        const std::lock_guard<std::mutex> lock(storage);
        ++answered;
      });
    }
    std::atomic<bool> done{false};
    reap::ThreadPool::shared().run([&] { done = true; });
    fixture::eventually([&] { return done && hung == 16; });
    CHECK_EQ(answered, 0);
  }
  fixture::eventually([&] { return answered == 16; });
}
