// Which prefetch threads get another one in their place.
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "prefetch/prefetcher.h"
#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Restore;

size_t worker_count() {
  size_t count = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    std::getline(file, name);
    if (name == "reap-fetch") ++count;
  }
  return count;
}

// A restore that keeps its worker: at work, or waiting.
class Keeping : public fixture::Client {
 public:
  Keeping(Restore& restore, bool computes) : Client(restore), computes_(computes) {}
  void begin_installs() override {
    begun.set();
    while (computes_ && !released.is_set()) {
    }
    const std::lock_guard<std::mutex> lock(storage);
  }
  fixture::Flag begun;
  fixture::Flag released;
  std::mutex storage;

 private:
  const bool computes_;
};

struct Scene {
  explicit Scene(bool computes)
      : client(std::make_shared<Keeping>(restore, computes)), hangs(client->storage) {
    fixture::start(prefetcher, client, write_working_set(restore, fixture::one_page_groups({1})));
    prefetcher.connected(client.get());
    client->begun.wait();
  }
  ~Scene() { client->released.set(); }

  Restore restore;
  std::shared_ptr<Keeping> client;
  reap::Prefetcher prefetcher{1, 0, {}, [] {}};
  std::unique_lock<std::mutex> hangs;
};

}  // namespace

TEST(a_prefetch_thread_that_waits_for_long_gets_another_in_its_place) {
  Scene scene(false);
  fixture::eventually([&] {
    scene.prefetcher.replace_stuck_threads();
    return worker_count() == 2;
  });
}

TEST(a_prefetch_thread_that_computes_for_long_does_not) {
  Scene scene(true);
  for (int looks = 0; looks < 20; ++looks) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    scene.prefetcher.replace_stuck_threads();
    CHECK_EQ(worker_count(), 1U);
  }
}
