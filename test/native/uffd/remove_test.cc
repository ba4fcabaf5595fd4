// Pages that the guest gives back (UFFD_EVENT_REMOVE) read as zero afterwards, in every race.
#include <array>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Shape;
using Filled = reap::FaultHandler::Filled;
using Served = reap::FaultHandler::Served;

constexpr uint64_t kPageSizes[] = {fixture::kSmallPage, fixture::kHugePage};

Shape eight_pages(uint64_t page_size) {
  Shape shape;
  shape.page_size = page_size;
  shape.region_pages = {8};
  check::about = std::to_string(page_size) + " byte pages";
  return shape;
}

}  // namespace

TEST(pages_removed_before_a_prefetch_stay_zero) {
  for (const uint64_t page_size : kPageSizes) {
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    CHECK(restore.guest.remove(2, 3));
    CHECK(restore.fill(0, 8) == Filled::all);
    for (uint64_t page = 2; page < 5; ++page) {
      CHECK(!restore.guest.is_present(page));
      CHECK(restore.is_zero(page));
    }
    for (const uint64_t page : {0, 1, 5, 6, 7}) CHECK(restore.has_file_bytes(page));
    servers.stop();
    CHECK_EQ(restore.get(Counter::removed), 3);
    CHECK_EQ(restore.get(Counter::prefetched), 5);
    CHECK_EQ(restore.get(Counter::zero), 3);
  }
}

TEST(pages_removed_after_a_prefetch_stay_zero) {
  for (const uint64_t page_size : kPageSizes) {
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    CHECK(restore.fill(0, 8) == Filled::all);
    CHECK(restore.guest.remove(2, 3));
    CHECK(restore.is_zero(3));
    CHECK(restore.fill(0, 8) == Filled::all);
    CHECK(!restore.guest.is_present(2));
    // Written to, given back again, and touched again.
    fixture::poke(restore.guest.page(4), 1);
    CHECK(restore.guest.remove(4));
    CHECK(restore.fill(0, 8) == Filled::all);
    for (uint64_t page = 2; page < 5; ++page) CHECK(restore.is_zero(page));
    for (const uint64_t page : {0, 1, 5, 6, 7}) CHECK(restore.has_file_bytes(page));
  }
}

TEST(a_prefetch_in_flight_skips_a_removed_page) {
  for (const uint64_t page_size : kPageSizes) {
    fixture::Hooks hooks;
    fixture::Hold installing;
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    reap::hooks::before_prefetch_install = installing.hook();
    Servers servers(*restore.handler);
    std::thread worker([&] { CHECK(restore.fill(0, 8) == Filled::all); });
    installing.wait_until_held();
    CHECK(restore.guest.remove(5));
    installing.release();
    worker.join();
    CHECK(!restore.guest.is_present(5));
    CHECK(restore.is_zero(5));
    CHECK(restore.has_file_bytes(4));
    CHECK(restore.has_file_bytes(6));
  }
}

// The worker is between the check for removed pages and its ioctl. Nobody may read the REMOVE until
// it has finished, or madvise() drops the pages and the worker restores the old bytes.
TEST(a_prefetch_in_flight_does_not_bring_a_removed_page_back) {
  for (const uint64_t page_size : kPageSizes) {
    fixture::Hooks hooks;
    fixture::Hold looked;
    fixture::Flag draining;
    fixture::Flag removed;
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    reap::hooks::before_ioctl = looked.hook();
    reap::hooks::before_drain = [&] { draining.set(); };
    Filled filled = Filled::all;
    std::thread worker([&] { filled = restore.fill(0, 8); });
    looked.wait_until_held();
    std::thread balloon([&] {
      CHECK(restore.guest.remove(0, 8));
      removed.set();
    });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
    Servers servers(*restore.handler);
    draining.wait();
    CHECK(!removed.set_within_a_moment());
    looked.release();
    worker.join();
    balloon.join();
    // Either the copy was refused because of the unread event, or it preceded madvise().
    CHECK(filled == Filled::deferred || filled == Filled::all);
    CHECK(restore.fill(0, 8) == Filled::all);
    for (uint64_t page = 0; page < 8; ++page) CHECK(restore.is_zero(page));
  }
}

TEST(a_served_fault_in_flight_does_not_bring_a_removed_page_back) {
  for (const uint64_t page_size : kPageSizes) {
    fixture::Hooks hooks;
    fixture::Hold looked;
    fixture::Flag removed;
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    reap::hooks::before_ioctl = looked.hook();
    Servers servers(*restore.handler, 2);
    std::thread vcpu([&] { fixture::peek(restore.guest.page(3)); });
    looked.wait_until_held();
    std::thread balloon([&] {
      CHECK(restore.guest.remove(3));
      removed.set();
    });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
    CHECK(!removed.set_within_a_moment());
    looked.release();
    vcpu.join();
    balloon.join();
    CHECK(restore.is_zero(3));
  }
}

TEST(a_fault_whose_bytes_were_read_before_the_remove_gets_zeros) {
  for (const uint64_t page_size : kPageSizes) {
    fixture::Hooks hooks;
    fixture::Hold installing;
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    reap::hooks::before_install = installing.hook();
    Servers servers(*restore.handler, 2);
    std::thread vcpu([&] { CHECK(restore.is_zero(3)); });
    installing.wait_until_held();
    CHECK(restore.guest.remove(3));
    installing.release();
    vcpu.join();
  }
}

TEST(a_fault_read_before_its_remove_gets_zeros) {
  for (const uint64_t page_size : kPageSizes) {
    fixture::Hooks hooks;
    fixture::Hold serving;
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    reap::hooks::before_serve = serving.hook();
    Servers servers(*restore.handler);
    std::thread vcpu([&] { CHECK(restore.is_zero(3)); });
    serving.wait_until_held();
    std::thread balloon([&] { CHECK(restore.guest.remove(3)); });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
    serving.release();
    vcpu.join();
    balloon.join();
    servers.stop();
    CHECK(restore.get(Counter::deferred) > 0);
    // More than once if the zeros came before madvise() dropped the page, and were dropped with it.
    CHECK(restore.get(Counter::zero) >= 1);
    CHECK_EQ(restore.get(Counter::installed), 0);
  }
}

// The kernel returns faults before REMOVEs that happened earlier.
TEST(a_fault_that_overtakes_its_remove_gets_zeros) {
  for (const uint64_t page_size : kPageSizes) {
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    std::thread balloon([&] { CHECK(restore.guest.remove(3)); });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
    std::thread vcpu([&] { CHECK(restore.is_zero(3)); });
    fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
    Servers servers(*restore.handler);
    balloon.join();
    vcpu.join();
    CHECK(restore.has_file_bytes(2));
  }
}

TEST(a_remove_that_covers_two_regions_and_their_gap_removes_both) {
  Shape shape;
  shape.region_pages = {4, 4};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  CHECK(restore.guest.remove(3));
  CHECK(restore.guest.remove(4));
  CHECK(restore.is_zero(3));
  CHECK(restore.is_zero(4));
  CHECK(restore.has_file_bytes(2));
  CHECK(restore.has_file_bytes(5));
  servers.stop();
  CHECK_EQ(restore.get(Counter::removed), 2);
}

TEST(a_fault_behind_an_unread_remove_is_served_later) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<std::thread> balloons;
  // A new event arrives whenever the handler assumes that it has read them all.
  reap::hooks::before_serve = [&] {
    if (balloons.size() == 2) return;
    if (!balloons.empty()) balloons.back().join();
    const uint64_t page = balloons.size();
    balloons.emplace_back([&restore, page] { CHECK(restore.guest.remove(page)); });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
  };
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(9)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(4096));
  const auto serve = [&] {
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
  };
  // A turn may expire between the two.
  while (restore.get(Counter::deferred) < 2) CHECK(serve() == Served::later);
  CHECK(!restore.guest.is_present(9));
  fixture::eventually([&] { return serve() == Served::idle; });
  vcpu.join();
  for (std::thread& balloon : balloons) {
    if (balloon.joinable()) balloon.join();
  }
  CHECK_EQ(restore.get(Counter::faults), 1);
  CHECK_EQ(restore.get(Counter::removed), 2);
}

TEST(a_prefetch_behind_an_unread_remove_is_deferred) {
  for (const uint64_t page_size : kPageSizes) {
    Restore restore(eight_pages(page_size));
    if (!restore.missing().empty()) SKIP(restore.missing());
    std::thread balloon([&] { CHECK(restore.guest.remove(0)); });
    fixture::eventually([&] { return restore.guest.remove_is_pending(); });
    CHECK(restore.fill(0, 8) == Filled::deferred);
    CHECK_EQ(restore.get(Counter::deferred), 1);
    CHECK_EQ(restore.get(Counter::prefetched), 0);
    Servers servers(*restore.handler);
    balloon.join();
    fixture::eventually([&] { return restore.fill(0, 8) == Filled::all; });
    CHECK(restore.is_zero(0));
    for (uint64_t page = 1; page < 8; ++page) CHECK(restore.has_file_bytes(page));
  }
}

// The end of detach(). More events than one read returns, and one thread in madvise() for each.
TEST(removes_that_are_queued_while_the_memory_is_unregistered_hold_nobody) {
  constexpr uint64_t kBalloons = 40;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  CHECK(restore.fill(0, restore.shape.pages()) == Filled::all);
  std::atomic<uint64_t> over{0};
  std::vector<std::atomic<pid_t>> numbers(kBalloons);
  std::vector<std::thread> balloons;
  for (uint64_t page = 0; page < kBalloons; ++page) {
    balloons.emplace_back([&, page] {
      numbers[page] = fixture::this_thread();
      CHECK(restore.guest.remove(page));
      ++over;
    });
  }
  // Each one in madvise(), where it waits until its event is read.
  for (const std::atomic<pid_t>& number : numbers) {
    fixture::eventually([&] { return number != 0 && fixture::is_asleep(number); });
  }
  CHECK_EQ(over.load(), 0);
  // Only the handler reads them, and this is its last read.
  CHECK_EQ(restore.handler->unregister(), 0);
  CHECK(fixture::in_time([&] { return over == kBalloons; }));
  // Releases a thread that is held after all.
  Servers servers(*restore.handler);
  for (std::thread& balloon : balloons) balloon.join();
  for (uint64_t page = 0; page < kBalloons; ++page) CHECK(restore.is_zero(page));
}

// The kernel may interrupt a thread in madvise() just before it queues its event.
TEST(a_remove_that_is_queued_after_the_last_look_holds_nobody) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  CHECK(restore.fill(0, restore.shape.pages()) == Filled::all);
  fixture::Flag over;
  std::thread balloon([&] {
    CHECK(restore.guest.remove(3));
    over.set();
  });
  fixture::eventually([&] { return restore.guest.remove_is_pending(); });
  reap::hooks::messages_are_late = [looks = 0]() mutable { return looks++ == 0; };
  CHECK_EQ(restore.handler->unregister(), 0);
  CHECK(fixture::in_time([&] { return over.is_set(); }));
  // Releases a thread that is held after all.
  Servers servers(*restore.handler);
  balloon.join();
  CHECK(restore.is_zero(3));
}

// A VMM that gives memory back from many threads does not hold the thread that serves it beyond its
// turn, whatever each REMOVE costs.
TEST(a_turn_that_is_over_leaves_unread_removes_for_the_next) {
  constexpr uint64_t kPages = 80;
  fixture::Hooks hooks;
  Shape shape;
  shape.region_pages = {kPages + 1};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<std::thread> balloons;
  std::array<std::atomic<pid_t>, kPages> tasks{};
  for (uint64_t page = 0; page < kPages; ++page) {
    balloons.emplace_back([&, page] {
      tasks[page] = fixture::this_thread();
      CHECK(restore.guest.remove(page));
    });
  }
  for (const auto& task : tasks) {
    fixture::eventually([&] { return task > 0 && fixture::is_asleep(task); });
  }
  reap::hooks::turn_is_over = [] { return true; };
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(fixture::kSmallPage));
  uint64_t turns = 0;
  for (uint64_t before = 0; restore.get(Counter::removed) < kPages; ++turns) {
    CHECK(restore.handler->serve_once(buffers) == Served::idle);
    const uint64_t now = restore.get(Counter::removed);
    CHECK(now - before <= 32);
    before = now;
  }
  CHECK(turns >= 3);
  for (std::thread& balloon : balloons) balloon.join();
  reap::hooks::turn_is_over = nullptr;
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < kPages; ++page) CHECK(restore.is_zero(page));
  CHECK(restore.has_file_bytes(kPages));
}
