#include "base/thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "support/check.h"
#include "support/guest_fixture.h"

TEST(a_thread_pool_does_much_short_work_on_a_few_threads) {
  constexpr int kWork = 64;
  std::mutex mutex;
  std::set<pid_t> threads;
  std::atomic<int> done{0};
  for (int i = 0; i < kWork; ++i) {
    const int error = reap::ThreadPool::shared().run([&] {
      {
        const std::lock_guard<std::mutex> lock(mutex);
        threads.insert(::gettid());
      }
      ++done;
    });
    CHECK_EQ(error, 0);
  }
  fixture::eventually([&] { return done == kWork; });
  // More than the minimum if one waits for a core while it holds the mutex.
  CHECK(threads.size() < kWork / 2);
}

TEST(a_thread_pool_does_work_while_other_work_hangs) {
  struct State {
    std::mutex storage;
    std::atomic<int> hung{0};
    std::atomic<int> answered{0};
    std::atomic<bool> done{false};
  };
  // Of all of them: the last one unlocks the mutex after it has counted.
  const auto state = std::make_shared<State>();
  {
    const std::lock_guard<std::mutex> hangs(state->storage);
    for (int i = 0; i < 16; ++i) {
      reap::ThreadPool::shared().run([state] {
        ++state->hung;
        const std::lock_guard<std::mutex> lock(state->storage);
        ++state->answered;
      });
    }
    reap::ThreadPool::shared().run([state] { state->done = true; });
    fixture::eventually([&] { return state->done && state->hung == 16; });
    CHECK_EQ(state->answered, 0);
  }
  fixture::eventually([&] { return state->answered == 16; });
}

TEST(a_thread_pool_has_no_further_threads_for_work_that_computes) {
  constexpr int kWork = 16;
  constexpr int kUsual = 4;
  struct State {
    std::atomic<int> begun{0};
    std::atomic<int> done{0};
    std::atomic<bool> ends{false};
  };
  const auto state = std::make_shared<State>();
  for (int i = 0; i < kWork; ++i) {
    reap::ThreadPool::shared().run([state] {
      ++state->begun;
      while (!state->ends) {
      }
      ++state->done;
    });
  }
  fixture::eventually([&] { return state->begun == kUsual; });
  // Ten times as long as work waits for threads that hang.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK_EQ(state->begun, kUsual);
  state->ends = true;
  fixture::eventually([&] { return state->done == kWork; });
}

TEST(threads_that_wait_for_storage_have_a_bound) {
  constexpr int kBound = 128;
  constexpr int kWork = 200;
  struct State {
    std::mutex storage;
    std::atomic<int> begun{0};
    std::atomic<int> done{0};
  };
  const auto state = std::make_shared<State>();
  std::unique_lock<std::mutex> hangs(state->storage);
  for (int i = 0; i < kWork; ++i) {
    reap::ThreadPool::shared().run([state] {
      ++state->begun;
      const std::lock_guard<std::mutex> lock(state->storage);
      ++state->done;
    });
  }
  fixture::eventually([&] { return state->begun >= kBound; });
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(state->begun.load(), kBound);
  hangs.unlock();
  fixture::eventually([&] { return state->done == kWork; });
}
