// Memory for guests' bytes: shared, kept out of core dumps, and returned when nobody needs it.
#include "prefetch/buffer_pool.h"

#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/prefetch_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::Client;
using fixture::Restore;
using fixture::Servers;
using reap::Buffer;
using reap::BufferPool;
using reap::Prefetcher;

// Resident KiB of this process that neither a child nor a core dump gets: that of buffers.
uint64_t buffer_kib() {
  std::ifstream smaps("/proc/self/smaps");
  uint64_t sum = 0;
  uint64_t resident = 0;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::string word;
    words >> word;
    if (word == "Rss:") words >> resident;
    if (word != "VmFlags:") continue;
    bool is_kept_from_children = false;
    bool is_kept_from_dumps = false;
    while (words >> word) {
      is_kept_from_children = is_kept_from_children || word == "dc";
      is_kept_from_dumps = is_kept_from_dumps || word == "dd";
    }
    if (is_kept_from_children && is_kept_from_dumps) sum += resident;
  }
  return sum;
}

}  // namespace

TEST(a_buffer_returns_to_the_pool_with_its_last_owner) {
  BufferPool& pool = BufferPool::shared();
  std::vector<Buffer> taken;
  while (Buffer buffer = pool.take()) taken.push_back(buffer);
  CHECK_EQ(taken.size(), BufferPool::kBuffers);
  const Buffer other_owner = taken.back();
  taken.pop_back();
  CHECK(!pool.take());
  taken.pop_back();
  CHECK_EQ(pool.free_count(), 1);
  taken.clear();
  CHECK_EQ(pool.free_count(), BufferPool::kBuffers - 1);
}

TEST(engines_share_their_buffers_and_return_the_memory_when_they_are_idle) {
  fixture::Hooks hooks;
  reap::hooks::is_cold = [] { return true; };
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<uint32_t> order;
  for (uint32_t page = 0; page < 60; ++page) order.push_back(page);
  const fixture::Set set = write_working_set(restore, fixture::one_page_groups(order));
  Prefetcher waiting(2, 2);
  Prefetcher connected(2, 2);
  const auto nobody = std::make_shared<Client>(restore);
  fixture::start(waiting, nobody, set);
  CHECK(fixture::in_time([] { return BufferPool::shared().free_count() == 0; }));
  CHECK(buffer_kib() > 0);
  // The buffers are all taken, and the restore of another engine does without.
  const auto client = std::make_shared<Client>(restore);
  fixture::start(connected, client, set);
  connected.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, 60);
  for (const uint32_t page : order) CHECK(restore.has_file_bytes(page));
  // The threads are idle, and have returned their own memory, when the buffers become free.
  std::this_thread::sleep_for(3 * BufferPool::kIdle);
  waiting.cancel(nobody.get());
  CHECK(fixture::in_time([] { return buffer_kib() == 0; }));
  CHECK_EQ(BufferPool::shared().free_count(), BufferPool::kBuffers);
}

// A thread that does not wait at that moment is not woken.
TEST(buffers_that_are_freed_while_a_thread_returns_its_memory_are_returned_too) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const fixture::Set set = write_working_set(restore, fixture::one_page_groups({1, 2, 3}));
  fixture::Hold returned;
  // A thread without a first task has no buffers to return.
  reap::hooks::after_release = [&] {
    if (restore.get(fixture::Counter::bytes_read) > 0) returned();
  };
  Prefetcher prefetcher(1);
  const auto nobody = std::make_shared<Client>(restore);
  fixture::start(prefetcher, nobody, set);
  returned.wait_until_held();
  CHECK(buffer_kib() > 0);
  prefetcher.cancel(nobody.get());
  returned.release();
  CHECK(fixture::in_time([] { return buffer_kib() == 0; }));
}

TEST(threads_that_serve_faults_return_their_memory_when_they_are_idle) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::atomic<uint64_t> while_serving{0};
  reap::hooks::before_install = [&] { while_serving = buffer_kib(); };
  fixture::EngineRun run;
  fixture::SessionOptions options;
  options.socket_path = restore.directory.path("uffd.sock");
  options.memory_file = restore.path;
  options.kill_vm = false;
  run.open(options);
  const reap::UniqueFd connection = fixture::connect_to(options.socket_path);
  CHECK(fixture::send(connection.get(), fixture::handshake_text(restore.guest, 4096),
                      {restore.guest.uffd()}));
  CHECK(restore.has_file_bytes(3));
  CHECK(while_serving > 0);
  CHECK(fixture::in_time([] { return buffer_kib() == 0; }));
}
