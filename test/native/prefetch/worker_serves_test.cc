// Prefetch workers that serve faults of their guest between installs.
#include <sys/resource.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "prefetch/prefetcher.h"
#include "support/check.h"
#include "support/prefetch_fixture.h"
#include "support/vmm_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Shape;
using Served = reap::FaultHandler::Served;

// A restore that is served by prefetch workers only.
class WorkersAlone : public fixture::Client {
 public:
  explicit WorkersAlone(Restore& restore) : Client(restore) {}
  void begin_installs() override { ++serving; }
  void poll_faults(reap::ServeBuffers& buffers) override {
    CHECK(buffers.reserve(handler().memory().page_size()));
    handler().serve_once(buffers);
    ++looks;
  }
  void end_installs() override { --serving; }

  std::atomic<int> serving{0};
  std::atomic<int> looks{0};
};

constexpr uint32_t kPages = 160;

Shape shape_of_many() {
  Shape shape;
  shape.region_pages = {kPages};
  return shape;
}

// One group with every second page of memory.
std::vector<fixture::Group> every_second_page() {
  fixture::Group group;
  for (uint32_t page = 0; page < kPages; page += 2) group.push_back({page, 1});
  return {group};
}

// Starts the prefetch of a guest that has connected.
void start(reap::Prefetcher& prefetcher, const std::shared_ptr<WorkersAlone>& client,
           const fixture::Set& set) {
  fixture::start(prefetcher, client, set);
  prefetcher.connected(client.get());
}

// Prefetches every second page, and holds the first install until the guest waits for `page` and
// has received it.
std::shared_ptr<WorkersAlone> fault_beside_the_first_install(Restore& restore, uint64_t page) {
  const auto client = std::make_shared<WorkersAlone>(restore);
  fixture::Hold hold;
  reap::hooks::before_prefetch_install = hold.hook();
  reap::Prefetcher prefetcher(1);
  start(prefetcher, client, write_working_set(restore, every_second_page()));
  hold.wait_until_held();
  CHECK_EQ(client->serving, 1);
  restore.handler->expect_prefetch();
  for (uint64_t planned = 0; planned < kPages; planned += 2) {
    restore.handler->expect(planned * 4096, 4096);
  }
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(page)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  hold.release();
  client->wait_for_prefetched();
  vcpu.join();
  CHECK_EQ(client->serving, 0);
  return client;
}

}  // namespace

TEST(a_worker_leaves_a_late_fault_to_the_batch_that_it_installs) {
  fixture::Hooks hooks;
  Restore restore(shape_of_many());
  if (!restore.missing().empty()) SKIP(restore.missing());
  // The memory file's pages would have to be read from the disk, for which no worker waits.
  reap::hooks::is_cold = [] { return true; };
  const auto client = fault_beside_the_first_install(restore, kPages - 2);
  CHECK_EQ(restore.get(Counter::faults), 1);
  CHECK_EQ(restore.get(Counter::late_faults), 1);
  CHECK_EQ(restore.get(Counter::bytes_read), kPages / 2 * 4096);
  CHECK_EQ(client->wait_for_prefetched().pages, kPages / 2);
  CHECK_EQ(restore.get(Counter::installed), kPages / 2);
  for (uint64_t page = 0; page < kPages; page += 2) CHECK(restore.guest.is_present(page));
}

TEST(a_worker_serves_a_fault_on_another_page_from_the_page_cache) {
  fixture::Hooks hooks;
  Restore restore(shape_of_many());
  if (!restore.missing().empty()) SKIP(restore.missing());
  const uint64_t page = kPages - 1;
  std::vector<uint8_t> warm(4096);
  CHECK_EQ(restore.memory_file.read(page * 4096, warm.data(), warm.size()).err, 0);
  const auto client = fault_beside_the_first_install(restore, page);
  CHECK_EQ(restore.get(Counter::faults), 1);
  CHECK_EQ(client->wait_for_prefetched().pages, kPages / 2);
  CHECK(restore.guest.is_present(page));
}

namespace {

// Faults of which the first, with the lowest address, has to wait for the disk; the others are on
// holes of the memory file.
void serve_those_behind_a_cold_fault(uint64_t count) {
  Shape shape = shape_of_many();
  for (uint64_t page = 6; page < kPages; ++page) shape.holes.push_back(page);
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<std::thread> vcpus;
  std::atomic<uint64_t> served{0};
  for (uint64_t page = 5; page < 5 + count; ++page) {
    vcpus.emplace_back([&, page] {
      CHECK(page == 5 ? restore.has_file_bytes(page) : restore.is_zero(page));
      ++served;
    });
    fixture::eventually([&] { return restore.guest.faults_pending() == vcpus.size(); });
  }
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  // Once, or a few times if the machine is so busy that a turn expires after its first fault.
  CHECK(fixture::in_time([&] {
    CHECK_EQ(restore.handler->serve_once(buffers), Served::later);
    return served == count - 1;
  }));
  CHECK(!restore.guest.is_present(5));
  CHECK_EQ(restore.get(Counter::bytes_read), 0);
  // A demand thread takes the remaining fault, and waits.
  fixture::eventually([&] {
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; }) ==
           Served::idle;
  });
  for (std::thread& vcpu : vcpus) vcpu.join();
}

}  // namespace

TEST(a_cold_fault_does_not_delay_the_faults_after_it) {
  fixture::Hooks hooks;
  reap::hooks::is_cold = [] { return true; };
  serve_those_behind_a_cold_fault(3);
}

TEST(a_cold_fault_does_not_delay_the_faults_after_it_when_turns_expire) {
  fixture::Hooks hooks;
  reap::hooks::is_cold = [] { return true; };
  // Longer than a turn, which then ends with its first fault.
  reap::hooks::before_serve = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  serve_those_behind_a_cold_fault(3);
  // Enough for the search for duplicates.
  serve_those_behind_a_cold_fault(80);
}

TEST(a_page_that_was_removed_before_its_batch_is_zero) {
  fixture::Hooks hooks;
  Restore restore(shape_of_many());
  if (!restore.missing().empty()) SKIP(restore.missing());
  const auto client = std::make_shared<WorkersAlone>(restore);
  fixture::Hold hold;
  reap::hooks::before_prefetch_install = hold.hook();
  reap::Prefetcher prefetcher(1);
  start(prefetcher, client, write_working_set(restore, every_second_page()));
  hold.wait_until_held();
  fixture::Flag removed;
  // The worker waits for madvise() to complete, however long the scheduler takes.
  reap::hooks::before_remove_pause = [&] { removed.wait(); };
  std::thread vcpu([&] {
    // Returns when the worker has read the event.
    CHECK(restore.guest.remove(kPages - 2));
    removed.set();
    CHECK(restore.is_zero(kPages - 2));
  });
  fixture::eventually([&] { return restore.guest.remove_is_pending(); });
  hold.release();
  // No install was abandoned because of it.
  CHECK_EQ(client->wait_for_prefetched().pages, kPages / 2 - 1);
  // The worker may have finished before the guest asks.
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  std::atomic<bool> joined{false};
  std::thread server([&] {
    while (!joined) restore.handler->serve_once(buffers);
  });
  vcpu.join();
  joined = true;
  server.join();
  CHECK_EQ(restore.get(Counter::removed), 1);
}

TEST(workers_poll_for_faults_repeatedly_in_a_long_extent) {
  Restore restore(shape_of_many());
  if (!restore.missing().empty()) SKIP(restore.missing());
  const auto client = std::make_shared<WorkersAlone>(restore);
  reap::Prefetcher prefetcher(1);
  start(prefetcher, client, write_working_set(restore, {{{0, kPages}}}));
  client->wait_for_prefetched();
  CHECK_EQ(client->looks, static_cast<int>(kPages / 32));
}

// epoll and poll() report a blocking userfaultfd as broken, and a read of it would wait for a
// fault.
TEST(a_worker_does_not_poll_a_blocking_userfaultfd) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(5)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  CHECK(reap::uffd::has_messages(restore.guest.uffd()));
  CHECK_EQ(::fcntl(restore.guest.uffd(), F_SETFL, 0), 0);
  CHECK(!reap::uffd::has_messages(restore.guest.uffd()));
  CHECK_EQ(::fcntl(restore.guest.uffd(), F_SETFL, O_NONBLOCK), 0);
  fixture::Servers servers(*restore.handler);
  vcpu.join();
  servers.stop();
  CHECK(!reap::uffd::has_messages(restore.guest.uffd()));
}

namespace {

// A session whose first install is held: its worker serves, and does not run.
class HeldWorker {
 public:
  explicit HeldWorker(Restore& restore) {
    reap::hooks::cores_are_busy = [] { return true; };
    reap::hooks::before_prefetch_install = worker_.hook();
    reap::hooks::before_event = [this] {
      ++events_;
      if (hold_events_) event_();
    };
    fixture::SessionOptions options = options_of(restore);
    const fixture::Set set = write_working_set(restore, {{{0, 2}}});
    options.plan = std::make_shared<const reap::Plan>(set);
    options.proven = set.proven;
    session_ = run_.open(options);
    connection_ = connect_guest(restore);
    worker_.wait_until_held();
  }
  ~HeldWorker() {
    event_.release();
    CHECK(run_.close(session_.id, false));
    run_.wait_for_end(session_.id);
    run_.shut_down();
  }

  void resume_worker() {
    worker_.release();
    run_.wait(reap::Event::Kind::prefetched, session_.id);
  }
  // Holds the next event or timer of the session.
  void hold_next_event() { hold_events_ = true; }
  void wait_for_event() { event_.wait_until_held(); }
  void release_event() { event_.release(); }
  // Whether no event comes once those of the last fault are handled.
  bool is_quiet() const {
    return fixture::in_time([this] {
      const int before = events_;
      return !fixture::Flag().set_within_a_moment() && events_ == before;
    });
  }

 private:
  fixture::Hold worker_;
  fixture::Hold event_;
  std::atomic<bool> hold_events_{false};
  std::atomic<int> events_{0};
  fixture::EngineRun run_;
  fixture::EngineRun::Opened session_;
  reap::UniqueFd connection_;
};

}  // namespace

// A worker that serves may lose its core. Demand threads leave the userfaultfd to it, and return.
TEST(a_guest_whose_worker_does_not_run_is_served_all_the_same) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldWorker held(restore);
  // The first fault finds the userfaultfd watched, the others find it left to the worker.
  for (const uint64_t page : {9, 2, 11, 0, 13}) CHECK(restore.has_file_bytes(page));
  held.resume_worker();
  for (const uint64_t page : {15, 17, 4}) CHECK(restore.has_file_bytes(page));
  CHECK(held.is_quiet());
}

TEST(a_worker_that_has_served_gives_the_userfaultfd_back) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldWorker held(restore);
  CHECK(restore.has_file_bytes(9));
  // The timer that lets a demand thread check the worker has no effect.
  held.hold_next_event();
  held.wait_for_event();
  held.resume_worker();
  CHECK(restore.has_file_bytes(11));
}

TEST(a_userfaultfd_of_huge_pages_is_not_left_to_a_worker) {
  fixture::Hooks hooks;
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {8};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldWorker held(restore);
  CHECK(restore.has_file_bytes(5));
  CHECK(held.is_quiet());
  CHECK(restore.has_file_bytes(6));
  held.resume_worker();
}

// Both are read at once, and the thread that read them waits for the disk.
TEST(a_held_fault_is_served_on_time_while_another_waits_for_the_disk) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hold disk;
  reap::hooks::is_cold = [] { return true; };
  reap::hooks::before_install = disk.hook();
  HeldWorker held(restore);
  held.hold_next_event();
  std::thread residual([&] { CHECK(restore.has_file_bytes(9)); });
  held.wait_for_event();
  std::thread late([&] { CHECK(restore.has_file_bytes(1)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 2; });
  held.release_event();
  disk.wait_until_held();
  CHECK(fixture::in_time([&] { return restore.guest.is_present(1); }));
  CHECK(!restore.guest.is_present(9));
  disk.release();
  residual.join();
  late.join();
  held.resume_worker();
}

// Three are read at once, and the thread that read them waits for the disk.
TEST(another_thread_of_the_engine_serves_faults_while_one_waits_for_the_disk) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hold disk;
  reap::hooks::is_cold = [] { return true; };
  reap::hooks::before_install = disk.hook();
  HeldWorker held(restore);
  held.hold_next_event();
  std::vector<std::thread> vcpus;
  std::atomic<int> served{0};
  for (const uint64_t page : {9, 20, 30}) {
    vcpus.emplace_back([&, page] {
      CHECK(restore.has_file_bytes(page));
      ++served;
    });
  }
  held.wait_for_event();
  fixture::eventually([&] { return restore.guest.faults_pending() == 3; });
  held.release_event();
  disk.wait_until_held();
  CHECK(fixture::in_time([&] { return served == 2; }));
  disk.release();
  for (std::thread& vcpu : vcpus) vcpu.join();
  held.resume_worker();
}

TEST(a_prefetch_gives_way_to_whatever_wakes_on_its_core) {
  constexpr int kLowest = 19;
  const int own = ::getpriority(PRIO_PROCESS, 0);
  if (own == kLowest) SKIP("runs with the lowest priority");
  reap::Prefetcher prefetcher(1, 1);
  fixture::eventually([&] {
    int yielding = 0;
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::string name;
      std::getline(std::ifstream(task.path() / "comm"), name);
      const int thread = std::atoi(task.path().filename().c_str());
      const bool yields = ::getpriority(PRIO_PROCESS, thread) > own;
      yielding += yields && (name == "reap-fetch" || name == "reap-read-ahead") ? 1 : 0;
    }
    return yielding == 2;
  });
}
