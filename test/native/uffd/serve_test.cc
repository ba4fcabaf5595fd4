// Serving faults: bytes, wake-ups, reads, counters and traces.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Shape;
using reap::ErrorCode;
using Served = reap::FaultHandler::Served;

struct Layout {
  const char* name;
  std::vector<uint64_t> region_pages;
  bool descending;
};

Shape shape_of(const Layout& layout, uint64_t page_size) {
  Shape shape;
  shape.page_size = page_size;
  shape.region_pages = layout.region_pages;
  shape.descending = layout.descending;
  return shape;
}

// True if the page has the memory file's bytes after a write to its last one.
bool write_keeps_the_rest(const Restore& restore, uint64_t page) {
  uint8_t* last = restore.guest.page(page) + restore.page_size() - 1;
  fixture::poke(last, 0xA5);
  const bool rest =
      std::memcmp(restore.guest.page(page), restore.bytes_of(page), restore.page_size() - 1) == 0;
  return rest && fixture::peek(last) == 0xA5;
}

void serve_a_table_of_pages(uint64_t page_size, const std::vector<Layout>& layouts,
                            std::string* missing) {
  for (const Layout& layout : layouts) {
    for (const bool write : {false, true}) {
      Restore restore(shape_of(layout, page_size), true);  // recorded: one fault, one page
      *missing = restore.missing();
      if (!missing->empty()) return;
      Servers servers(*restore.handler);
      uint64_t first = 0;
      uint64_t touched = 0;
      for (const uint64_t pages : layout.region_pages) {
        for (const uint64_t page : {first, first + pages / 2, first + pages - 1}) {
          check::about = std::string(layout.name) + ", page " + std::to_string(page) +
                         (write ? ", write" : ", read");
          touched += !restore.guest.is_present(page);
          CHECK(write ? write_keeps_the_rest(restore, page) : restore.has_file_bytes(page));
        }
        first += pages;
      }
      check::about = layout.name;
      servers.stop();
      CHECK_EQ(restore.get(Counter::installed), touched);
      // A thread that is woken for another reason faults on its page again, and finds it present.
      const uint64_t faults = touched + restore.get(Counter::present);
      CHECK_EQ(restore.get(Counter::faults), faults);
      CHECK_EQ(restore.get(Counter::bytes_read), faults * page_size);
      check::about.clear();
    }
  }
}

}  // namespace

TEST(a_touched_page_has_the_bytes_of_the_memory_file) {
  std::string missing;
  serve_a_table_of_pages(
      fixture::kSmallPage,
      {{"one region", {64}, false},
       {"two regions and a hole between them", {16, 48}, false},
       {"64 regions, the first one highest", std::vector<uint64_t>(64, 3), true}},
      &missing);
  if (!missing.empty()) SKIP(missing);
}

TEST(a_touched_huge_page_has_the_bytes_of_the_memory_file) {
  std::string missing;
  serve_a_table_of_pages(fixture::kHugePage,
                         {{"one region", {5}, false},
                          {"two regions and a hole between them", {3, 4}, false},
                          {"8 regions, the first one highest", std::vector<uint64_t>(8, 1), true}},
                         &missing);
  if (!missing.empty()) SKIP(missing);
}

TEST(every_thread_that_waits_for_a_page_is_woken) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {4};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler, 2);
    constexpr int kThreads = 8;
    for (uint64_t page = 0; page < 4; ++page) {
      fixture::Barrier together(kThreads);
      std::vector<std::thread> threads;
      for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&, i] {
          const uint64_t at = static_cast<uint64_t>(i) * 509;
          together.arrive_and_wait();
          CHECK_EQ(fixture::peek(restore.guest.page(page) + at), restore.bytes_of(page)[at]);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
    servers.stop();
    CHECK_EQ(restore.get(Counter::installed), 4);
  }
}

TEST(an_install_by_another_party_is_no_lost_wake_up) {
  fixture::Hooks hooks;
  fixture::Hold serving;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::before_serve = serving.hook();
  Servers servers(*restore.handler);
  std::thread guest([&] { CHECK(restore.has_file_bytes(7)); });
  serving.wait_until_held();
  // Only the answer to EEXIST wakes the guest now.
  CHECK(restore.guest.install(7, restore.bytes_of(7), false));
  serving.release();
  guest.join();
  servers.stop();
  CHECK(restore.get(Counter::present) >= 1);
  CHECK_EQ(restore.get(Counter::present), restore.get(Counter::faults));
  CHECK_EQ(restore.get(Counter::installed), 0);
}

TEST(a_fault_is_served_at_once_while_a_worker_is_about_to_install_its_page) {
  fixture::Hooks hooks;
  fixture::Hold installing;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::before_prefetch_install = installing.hook();
  std::thread worker([&] { CHECK(restore.fill(0, 8) == reap::FaultHandler::Filled::all); });
  installing.wait_until_held();
  {
    Servers servers(*restore.handler);
    CHECK(restore.has_file_bytes(3));
  }
  installing.release();
  worker.join();
  for (uint64_t page = 0; page < 8; ++page) CHECK(restore.has_file_bytes(page));
  CHECK_EQ(restore.get(Counter::prefetched), 7);
}

TEST(a_fault_outside_of_every_region_fails_with_its_address) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  // As if the VMM had announced less than it registered.
  std::vector<reap::Region> announced = restore.guest.regions();
  announced[0].size /= 2;
  reap::FaultHandler handler(reap::GuestMemory(announced, fixture::kSmallPage),
                             restore.guest.uffd_for_the_handler(), restore.memory_file,
                             restore.measured);
  Servers servers(handler);
  std::thread guest([&] { fixture::peek(restore.guest.page(40)); });
  CHECK(servers.wait_for_end() == Served::failed);
  CHECK(handler.failure().code == ErrorCode::fault_unresolved);
  CHECK_EQ(handler.failure().check, "address");
  CHECK_EQ(handler.failure().offset, reinterpret_cast<uint64_t>(restore.guest.page(40)));
  restore.guest.unregister_all();
  guest.join();
}

TEST(a_truncated_memory_file_fails_the_fault_and_installs_no_zeros) {
  struct Row {
    const char* name;
    off_t size;
    std::vector<uint64_t> holes;
    const char* check = "cut-short";
  };
  const Row rows[] = {
      {"a cut in the page", 20 * 4096 + 100, {}},
      {"a cut at the page", 20 * 4096, {}},
      {"a cut in the page of a sparse file", 20 * 4096 + 100, {3}},
      {"a cut at the page of a sparse file", 20 * 4096, {3}},
      {"a cut in a hole", 20 * 4096 + 100, {20, 21}, "changed"},
      {"a cut before a hole", 20 * 4096, {20, 21}, "changed"},
      {"a cut to nothing", 0, {}},
  };
  for (const Row& row : rows) {
    check::about = row.name;
    Shape shape;
    shape.holes = row.holes;
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    if (row.size > 0) CHECK(restore.has_file_bytes(19));
    CHECK_EQ(::truncate(restore.path.c_str(), row.size), 0);
    fixture::Flag went_on;
    std::thread guest([&] {
      fixture::peek(restore.guest.page(20));
      went_on.set();
    });
    CHECK(servers.wait_for_end() == Served::failed);
    const reap::Failure failure = restore.handler->failure();
    CHECK(failure.code == ErrorCode::source_read);
    CHECK_EQ(failure.check, row.check);
    CHECK_EQ(failure.offset, 20 * 4096);
    CHECK(!went_on.is_set());
    CHECK(!restore.guest.is_present(20));
    restore.guest.unregister_all();
    guest.join();
  }
}

TEST(holes_of_the_memory_file_are_not_read_and_read_as_zero) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {8};
    shape.holes = {0, 3, 4, 7};
    shape.zeros = {2};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    for (const uint64_t page : {0, 2, 3, 4, 7}) CHECK(restore.is_zero(page));
    for (const uint64_t page : {1, 5, 6}) CHECK(restore.has_file_bytes(page));
    servers.stop();
    CHECK_EQ(restore.get(Counter::bytes_read), 4 * page_size);
    CHECK_EQ(restore.get(Counter::zero), 4);
    CHECK_EQ(restore.get(Counter::installed), 4);
  }
}

TEST(a_trace_has_the_first_touches_in_their_order) {
  Restore restore(Shape{}, true);
  if (!restore.missing().empty()) SKIP(restore.missing());
  const std::vector<uint32_t> order = {40, 3, 63, 0, 4, 41};
  {
    Servers servers(*restore.handler);
    for (const uint32_t page : order) {
      CHECK(restore.has_file_bytes(page));
      CHECK(restore.has_file_bytes(40));
    }
    CHECK(restore.guest.remove(3));
    CHECK(restore.is_zero(3));
    CHECK(restore.guest.remove(50));
    CHECK(restore.is_zero(50));
  }
  const reap::TraceRecorder::Trace trace = *restore.trace.take();
  CHECK_EQ(trace.page_size, 4096);
  CHECK_EQ(trace.memory_bytes, 64 * 4096);
  CHECK_EQ(trace.touches.size(), order.size());
  uint32_t last_us = 0;
  for (size_t i = 0; i < trace.touches.size() && i < order.size(); ++i) {
    CHECK_EQ(trace.touches[i].page, order[i]);
    CHECK(trace.touches[i].time_us >= last_us);
    last_us = trace.touches[i].time_us;
  }

  // Taking it ends only the recording.
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(20));
  CHECK_EQ(restore.trace.take()->touches.size(), order.size());
}

TEST(a_trace_has_no_page_twice_when_four_threads_touch_them) {
  Shape shape;
  shape.region_pages = {256, 256};
  Restore restore(shape, true);
  if (!restore.missing().empty()) SKIP(restore.missing());
  {
    Servers servers(*restore.handler, 2);
    fixture::Barrier together(4);
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        together.arrive_and_wait();
        for (uint64_t step = 0; step < 512; ++step) {
          const uint64_t page = i % 2 ? 511 - step : step;
          CHECK_EQ(fixture::peek(restore.guest.page(page)), *restore.bytes_of(page));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<bool> seen(512);
  const auto trace = *restore.trace.take();
  for (const auto& touch : trace.touches) {
    CHECK(!seen[touch.page]);
    seen[touch.page] = true;
  }
  CHECK_EQ(trace.touches.size(), 512);
}

TEST(another_thread_serves_faults_while_one_waits_for_the_disk) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::is_cold = [] { return true; };
  std::atomic<int> served{0};
  std::vector<std::thread> vcpus;
  for (uint64_t page = 0; page < 3; ++page) {
    vcpus.emplace_back([&, page] {
      CHECK(restore.has_file_bytes(page));
      ++served;
    });
  }
  fixture::eventually([&] { return restore.guest.faults_pending() == 3; });
  const auto serve_all = [&](const std::function<bool()>& before_blocking) {
    reap::ServeBuffers room;
    CHECK(room.reserve(4096));
    const std::chrono::nanoseconds no_spin{0};
    while (restore.handler->serve(room, no_spin, before_blocking) != Served::idle) continue;
  };
  int waited = 0;
  serve_all([&] {
    if (waited++ > 0) return true;
    std::thread other([&] { serve_all([] { return true; }); });
    other.join();
    fixture::eventually([&] { return served == 2; });
    return true;
  });
  for (std::thread& vcpu : vcpus) vcpu.join();
  CHECK_EQ(waited, 1);
  CHECK_EQ(restore.get(Counter::installed), 3);
}

TEST(a_fault_that_may_not_wait_for_the_disk_now_is_served_later) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::hooks::is_cold = [] { return true; };
  fixture::Flag went_on;
  std::thread vcpu([&] {
    CHECK(restore.has_file_bytes(3));
    went_on.set();
  });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  int asked = 0;
  const auto serve = [&](bool may_wait) {
    asked = 0;
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [&, may_wait] {
      ++asked;
      return may_wait;
    });
  };
  // The message is read once; after that the fault is in the list of waiting ones.
  for (int refusal = 0; refusal < 3; ++refusal) {
    CHECK_EQ(serve(false), Served::later);
    CHECK(asked > 0);
    CHECK_EQ(restore.guest.faults_pending(), 0);
  }
  CHECK(!went_on.is_set());
  CHECK(!restore.guest.is_present(3));
  CHECK_EQ(restore.get(Counter::bytes_read), 0);
  CHECK_EQ(serve(true), Served::idle);
  CHECK_EQ(asked, 1);
  vcpu.join();
  CHECK_EQ(restore.get(Counter::installed), 1);
  CHECK_EQ(restore.get(Counter::faults), 1);
  CHECK_EQ(restore.get(Counter::bytes_read), 4096);
}

TEST(a_thread_that_has_lost_its_core_does_not_poll_for_the_next_fault) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  int yields = 0;
  reap::hooks::core_is_lost = [&] { return ++yields > 0; };
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  // On a busy machine a turn may expire before its first yield.
  for (uint64_t page = 0; page < 60 && yields == 0; page += 2) {
    std::thread vcpu([&] { CHECK(restore.has_file_bytes(page)); });
    fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
    CHECK_EQ(restore.handler->serve(buffers, std::chrono::seconds(1), [] { return true; }),
             Served::idle);
    vcpu.join();
  }
  CHECK_EQ(yields, 1);
  CHECK(buffers.lost_core);
}

TEST(a_vmm_that_wakes_its_own_threads_does_not_grow_the_list_of_faults) {
  fixture::Hooks hooks;
  reap::hooks::is_cold = [] { return true; };
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(5)); });
  for (int i = 0; i < 200; ++i) {
    fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
    CHECK_EQ(restore.handler->serve_once(buffers), Served::later);
    CHECK(buffers.faults.size() < 64);
    const auto address = reinterpret_cast<uintptr_t>(restore.guest.page(5));
    CHECK_EQ(reap::uffd::wake(restore.guest.uffd(), address, 4096), 0);
  }
  reap::hooks::is_cold = nullptr;
  Servers servers(*restore.handler);
  vcpu.join();
}
