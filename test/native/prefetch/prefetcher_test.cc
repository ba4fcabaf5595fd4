// Prefetching without sessions: order, bounds, damage, page sizes, many restores at once.
#include "prefetch/prefetcher.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Set;
using fixture::Shape;
using reap::ErrorCode;
using reap::Plan;
using reap::Prefetcher;
using Filled = reap::FaultHandler::Filled;

Shape huge_shape() {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {8};
  return shape;
}

void prefetch(Prefetcher& prefetcher, const std::shared_ptr<Client>& client, const Set& set) {
  fixture::start(prefetcher, client, set);
  prefetcher.connected(client.get());
  client->wait_for_prefetched();
}

// Groups that a restore fetches before its VM connects: the whole pool if reads block.
uint64_t fetched_before_the_vm(bool cold) { return cold ? 24 : 8; }

// Checks that exactly `expected` of sixty groups are read while the worker is about to install the
// group number `held`.
void reads_while_installing(Restore& restore, uint64_t held, bool cold, uint64_t expected) {
  fixture::Hooks hooks;
  std::vector<uint32_t> order;
  for (uint32_t page = 0; page < 60; ++page) order.push_back(page);
  if (cold) reap::hooks::is_cold = [] { return true; };
  fixture::Hold hold;
  std::atomic<uint64_t> installs{0};
  reap::hooks::before_prefetch_install = [&] {
    if (++installs == held) hold();
  };
  Prefetcher prefetcher(1, 2);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, write_working_set(restore, fixture::one_page_groups(order)));
  const auto groups_read = [&] { return restore.get(Counter::bytes_read) / 4096; };
  fixture::eventually([&] { return groups_read() == fetched_before_the_vm(cold); });
  prefetcher.connected(client.get());
  hold.wait_until_held();
  CHECK(fixture::in_time([&] { return groups_read() >= expected; }));
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(groups_read(), expected);
  hold.release();
  CHECK_EQ(client->wait_for_prefetched().pages, 60);
  for (const uint32_t page : order) CHECK(restore.has_file_bytes(page));
  CHECK_EQ(groups_read(), 60);
}

}  // namespace

TEST(groups_are_installed_in_the_order_of_the_plan) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const std::vector<uint32_t> order = {40, 3, 63, 0, 17, 4};
  size_t done = 0;
  reap::hooks::before_prefetch_install = [&] {
    for (size_t i = 0; i < order.size(); ++i) {
      CHECK_EQ(restore.guest.is_present(order[i]), i < done);
    }
    ++done;
  };
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, write_working_set(restore, fixture::one_page_groups(order)));
  CHECK_EQ(done, order.size());
  const reap::PrefetchReport& report = client->wait_for_prefetched();
  CHECK_EQ(report.failure.code, ErrorCode::none);
  CHECK_EQ(report.pages, 6);
  CHECK_EQ(report.extents, 6);
  CHECK_EQ(report.bytes, 6 * 4096);
  for (const uint32_t page : order) CHECK(restore.has_file_bytes(page));
  CHECK(!restore.guest.is_present(1));
}

TEST(a_group_of_many_extents_is_installed_whole) {
  Shape shape;
  shape.region_pages = {300, 212};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  const std::vector<fixture::Group> groups = {
      {{0, 3}, {10, 1}, {20, 5, true}, {290, 20}},  // across the boundary of two regions
      {{400, 100}, {510, 2}},
      {{30, 1, true}},
      {}};
  Prefetcher prefetcher(2);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, write_working_set(restore, groups));
  uint64_t present = 0;
  for (uint64_t page = 0; page < 512; ++page) present += restore.guest.is_present(page);
  CHECK_EQ(present, 3 + 1 + 5 + 20 + 100 + 2 + 1);
  CHECK_EQ(client->wait_for_prefetched().pages, present);
  for (const fixture::Group& group : groups) {
    for (const fixture::Pages& extent : group) {
      for (uint32_t page = extent.first; page < extent.first + extent.count; ++page) {
        CHECK(extent.zero ? restore.is_zero(page) : restore.has_file_bytes(page));
      }
    }
  }
  CHECK_EQ(restore.get(Counter::zero), 6);
}

TEST(an_empty_working_set_is_prefetched_at_once) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, write_working_set(restore, {}));
  CHECK_EQ(client->wait_for_prefetched().pages, 0);
  const auto without_file = std::make_shared<Client>(restore);
  prefetch(prefetcher, without_file, Set());
  CHECK_EQ(without_file->wait_for_prefetched().failure.code, ErrorCode::none);
}

TEST(fetching_before_the_handshake_is_bounded) {
  constexpr uint32_t kGroups = 60;
  for (const bool cold : {true, false}) {
    check::about = cold ? "cold" : "warm";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    fixture::Hooks hooks;
    if (cold) reap::hooks::is_cold = [] { return true; };
    const uint64_t bound = fetched_before_the_vm(cold) * 4096;
    std::vector<uint32_t> order;
    for (uint32_t page = 0; page < kGroups; ++page) order.push_back(page);
    Prefetcher prefetcher(2);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, write_working_set(restore, fixture::one_page_groups(order)));
    fixture::eventually([&] { return restore.get(Counter::bytes_read) >= bound; });
    CHECK(!fixture::Flag().set_within_a_moment());
    fixture::eventually([&] { return prefetcher.busy_workers() == 0; });
    CHECK_EQ(restore.get(Counter::bytes_read), bound);
    CHECK_EQ(restore.get(Counter::prefetched), 0);
    prefetcher.connected(client.get());
    CHECK_EQ(client->wait_for_prefetched().pages, kGroups);
    for (const uint32_t page : order) CHECK(restore.has_file_bytes(page));
    CHECK_EQ(restore.get(Counter::bytes_read), kGroups * 4096);
  }
}

TEST(readers_fetch_ahead_of_a_worker_if_reads_wait_for_the_disk) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reads_while_installing(restore, 30, true, 30 + 8);
}

TEST(readers_leave_cached_groups_to_the_workers) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reads_while_installing(restore, 30, false, 30);
}

TEST(readers_take_no_more_buffers_than_before_the_vm_connected) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  reads_while_installing(restore, 10, true, 24);
}

TEST(a_damaged_group_ends_the_prefetch_and_the_rest_is_served_on_demand) {
  for (const bool connected_first : {true, false}) {
    check::about = connected_first ? "handshake before the damage" : "handshake after the damage";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    Set plan = write_working_set(restore, fixture::one_page_groups({9, 8, 7, 6, 5}));
    const uint32_t right = plan.groups[2].checksum;
    plan.groups[2].checksum ^= 0x10;
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, plan);
    if (!connected_first) {
      fixture::eventually([&] { return restore.get(Counter::bytes_read) == 3 * 4096; });
      CHECK(!fixture::Flag().set_within_a_moment());
      CHECK(!client->is_prefetched());
    }
    prefetcher.connected(client.get());
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::working_set_invalid);
    CHECK_EQ(report.failure.check, "group-checksum");
    CHECK_EQ(report.failure.offset, plan.groups[2].data_offset);
    CHECK_EQ(report.failure.want, plan.groups[2].checksum);
    CHECK_EQ(report.failure.got, right);
    for (const uint64_t page : {7, 6, 5}) CHECK(!restore.guest.is_present(page));
    for (uint64_t page = 0; page < 64; ++page) CHECK(restore.has_file_bytes(page));
  }
}

TEST(a_working_set_file_that_was_short_when_it_was_proven_is_reported) {
  for (const off_t size : {3 * 4096, 4 * 4096 - 1}) {
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set plan = write_working_set(restore, fixture::one_page_groups({9, 8, 7, 6, 5}));
    CHECK_EQ(::truncate(plan.path.c_str(), size), 0);
    prove(plan, restore.memory_file.stamp());
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, plan);
    CHECK(!client->is_prefetched());
    prefetcher.connected(client.get());
    const reap::Failure& failure = client->wait_for_prefetched().failure;
    CHECK_EQ(failure.code, ErrorCode::working_set_invalid);
    CHECK_EQ(failure.check, "cut-short");
    CHECK_EQ(failure.offset, 3 * 4096);
    Servers servers(*restore.handler);
    for (uint64_t page = 0; page < 64; ++page) CHECK(restore.has_file_bytes(page));
  }
}

TEST(several_restores_share_the_workers_and_one_that_fails_leaves_the_others_alone) {
  constexpr size_t kRestores = 6;
  constexpr size_t kDamaged = 2;
  std::vector<uint32_t> order;
  for (uint32_t page = 64; page-- > 0;) order.push_back(page);
  std::vector<std::unique_ptr<Restore>> restores;
  std::vector<std::shared_ptr<Client>> clients;
  Prefetcher prefetcher(2, 2);
  for (size_t i = 0; i < kRestores; ++i) {
    restores.push_back(std::make_unique<Restore>());
    if (!restores[i]->missing().empty()) SKIP(restores[i]->missing());
    clients.push_back(std::make_shared<Client>(*restores[i]));
    Set plan = write_working_set(*restores[i], fixture::one_page_groups(order));
    if (i == kDamaged) plan.groups[10].checksum += 1;
    fixture::start(prefetcher, clients[i], plan);
  }
  for (const auto& client : clients) prefetcher.connected(client.get());
  for (size_t i = 0; i < kRestores; ++i) {
    check::about = "restore " + std::to_string(i);
    const reap::PrefetchReport& report = clients[i]->wait_for_prefetched();
    CHECK_EQ(static_cast<bool>(report.failure), i == kDamaged);
    if (i == kDamaged) continue;
    CHECK_EQ(report.pages, 64);
    for (uint64_t page = 0; page < 64; ++page) {
      CHECK(restores[i]->guest.is_present(page));
      CHECK(restores[i]->has_file_bytes(page));
    }
  }
}

TEST(a_page_that_a_guest_waits_for_comes_next_whether_it_was_fetched_or_not) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  std::vector<uint32_t> order;
  for (uint32_t page = 0; page < 60; ++page) order.push_back(page);
  reap::hooks::is_cold = [] { return true; };
  fixture::Hold hold;
  int installs = 0;
  reap::hooks::before_prefetch_install = [&] {
    hold();
    if (++installs == 3) CHECK(restore.guest.is_present(50));
    if (installs == 4) CHECK(restore.guest.is_present(20));
    if (installs == 5) CHECK(restore.guest.is_present(1));
  };
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, write_working_set(restore, fixture::one_page_groups(order)));
  const uint64_t fetched = fetched_before_the_vm(true) * 4096;
  fixture::eventually([&] { return restore.get(Counter::bytes_read) == fetched; });
  prefetcher.connected(client.get());
  hold.wait_until_held();
  prefetcher.prioritize(client.get(), 20 * 4096);
  prefetcher.prioritize(client.get(), 50 * 4096);
  prefetcher.prioritize(client.get(), 50 * 4096);
  prefetcher.prioritize(client.get(), 63 * 4096);  // which is not in the plan
  hold.release();
  CHECK_EQ(client->wait_for_prefetched().pages, 60);
  CHECK_EQ(installs, 60);
  for (const uint32_t page : order) CHECK(restore.has_file_bytes(page));
}

TEST(the_oldest_running_guest_gets_its_pages_first) {
  fixture::Hooks hooks;
  Restore older;
  Restore newer;
  if (!older.missing().empty()) SKIP(older.missing());
  fixture::Hold hold;
  int installs = 0;
  reap::hooks::before_prefetch_install = [&] {
    hold();
    ++installs;
    CHECK_EQ(newer.guest.is_present(3), installs > 5);
  };
  Prefetcher prefetcher(1);
  std::vector<std::shared_ptr<Client>> clients;
  for (Restore* restore : {&older, &newer}) {
    clients.push_back(std::make_shared<Client>(*restore));
    fixture::start(prefetcher, clients.back(),
                   write_working_set(*restore, fixture::one_page_groups({3, 9, 5, 7})));
    prefetcher.connected(clients.back().get());
    if (restore == &older) hold.wait_until_held();
  }
  hold.release();
  for (const auto& client : clients) CHECK_EQ(client->wait_for_prefetched().pages, 4);
  CHECK_EQ(installs, 8);
}

namespace {

void cancel_at_any_moment(bool has_one_set, std::string* missing) {
  constexpr size_t kRestores = 4;
  std::vector<uint32_t> order;
  for (uint32_t page = 0; page < 64; ++page) order.push_back(page);
  std::vector<std::unique_ptr<Restore>> restores;
  for (size_t i = 0; i < kRestores; ++i) {
    restores.push_back(std::make_unique<Restore>());
    *missing = restores[i]->missing();
    if (!missing->empty()) return;
  }
  const auto set_of = [&](Restore& restore) {
    return write_working_set(restore, fixture::one_page_groups(order));
  };
  const Set one = set_of(*restores[0]);
  const auto plan_of = [&](Restore& restore) {
    Set plan = has_one_set ? one : set_of(restore);
    prove(plan, restore.memory_file.stamp());
    return plan;
  };
  fixture::Hooks hooks;
  std::atomic<uint64_t> reads{0};
  reap::hooks::is_cold = [&] { return ++reads % 3 != 0; };
  Prefetcher prefetcher(2, 2);
  uint64_t random = 1;
  const auto next = [&](uint64_t below) {
    random = random * 6364136223846793005 + 1442695040888963407;
    return (random >> 33) % below;
  };
  for (int round = 0; round < 50; ++round) {
    std::vector<std::shared_ptr<Client>> clients;
    for (const auto& restore : restores) {
      clients.push_back(std::make_shared<Client>(*restore));
      fixture::start(prefetcher, clients.back(), plan_of(*restore));
      if (next(2)) prefetcher.connected(clients.back().get());
      if (next(4) == 0) prefetcher.fill(clients.back());
    }
    for (const auto& client : clients) {
      // Neither a sleep nor a yield: on a busy machine both take longer than a whole prefetch.
      const auto moment = std::chrono::steady_clock::now() + std::chrono::microseconds(next(300));
      while (std::chrono::steady_clock::now() < moment) {
      }
      client->stop();
      prefetcher.cancel(client.get());
      fixture::eventually([&] { return client.use_count() == 1; });
    }
  }
  // All buffers are back in the pool. A restore takes them if its reads block.
  reap::hooks::is_cold = [] { return true; };
  const auto client = std::make_shared<Client>(*restores[0]);
  const uint64_t before = restores[0]->get(Counter::bytes_read);
  fixture::start(prefetcher, client, plan_of(*restores[0]));
  fixture::eventually(
      [&] { return restores[0]->get(Counter::bytes_read) - before >= uint64_t{24} * 4096; });
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().failure.code, ErrorCode::none);
  for (uint64_t page = 0; page < 64; ++page) CHECK(restores[0]->has_file_bytes(page));
}

}  // namespace

TEST(a_restore_that_is_cancelled_at_any_moment_is_released) {
  for (const bool has_one_set : {false, true}) {
    check::about = has_one_set ? "one set" : "a set for each";
    std::string missing;
    cancel_at_any_moment(has_one_set, &missing);
    if (!missing.empty()) SKIP(missing);
  }
}

TEST(a_guest_of_huge_pages_gets_whole_blocks_of_the_memory_file) {
  for (const bool with_file : {true, false}) {
    check::about = with_file ? "a working-set file" : "no working-set file";
    Restore restore(huge_shape());
    if (!restore.missing().empty()) SKIP(restore.missing());
    // Pages of blocks 3, 1 and 6, the last two across the boundary of two blocks each.
    Set plan = write_working_set(
        restore,
        {{{3 * 512 + 5, 1}, {3 * 512 + 9, 2}}, {{1 * 512 + 511, 2}}, {{6 * 512, 1, true}}});
    if (!with_file) plan.proven.reset();
    Prefetcher prefetcher(2);
    const auto client = std::make_shared<Client>(restore);
    prefetch(prefetcher, client, plan);
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK_EQ(report.pages, 4);
    for (uint64_t page = 0; page < 8; ++page) {
      const bool wanted = page == 3 || page == 1 || page == 2 || page == 6;
      CHECK_EQ(restore.guest.is_present(page), wanted);
      if (wanted) CHECK(restore.has_file_bytes(page));
    }
  }
}

TEST(a_working_set_of_small_pages_serves_a_guest_of_huge_pages) {
  Restore restore(huge_shape());
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  reap::hooks::is_cold = [] { return true; };
  Set plan = write_working_set(restore, {{{5, 1}}, {{7 * 512 + 9, 3}}, {{6, 1}}});
  plan.page_size = fixture::kSmallPage;
  Prefetcher prefetcher(2, 2);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, plan);
  fixture::eventually([&] { return restore.get(Counter::bytes_read) >= 5 * 4096; });
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, 2);
  CHECK(restore.guest.is_present(0));
  CHECK(restore.guest.is_present(7));
  CHECK(restore.has_file_bytes(0));
  CHECK(restore.has_file_bytes(7));
}

TEST(a_working_set_of_huge_pages_serves_a_guest_of_small_pages) {
  Shape shape;
  shape.region_pages = {1024};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  Set plan = write_working_set(restore, fixture::one_page_groups({600, 7, 9}));
  plan.page_size = fixture::kHugePage;
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, plan);
  fixture::eventually([&] { return restore.get(Counter::bytes_read) > 0; });
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, 3);
  for (const uint64_t page : {600, 7, 9}) {
    CHECK(restore.guest.is_present(page));
    CHECK(restore.has_file_bytes(page));
  }
}

TEST(filling_installs_every_page_except_removed_ones) {
  for (const uint64_t page_size : {fixture::kSmallPage, fixture::kHugePage}) {
    Shape shape;
    shape.page_size = page_size;
    shape.region_pages = {5, 4};
    shape.holes = {2, 6};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    Servers servers(*restore.handler);
    CHECK(restore.guest.remove(4));
    Prefetcher prefetcher(2);
    const auto client = std::make_shared<Client>(restore);
    prefetcher.fill(client);
    CHECK(client->wait_for_filled().first == Filled::all);
    for (uint64_t page = 0; page < 9; ++page) {
      CHECK_EQ(restore.guest.is_present(page), page != 4);
      CHECK(page == 4 ? restore.is_zero(page) : restore.has_file_bytes(page));
    }
    CHECK_EQ(restore.get(Counter::bytes_read), 7 * page_size);
  }
}

TEST(a_truncated_memory_file_fails_the_fill_and_the_prefetch_by_block) {
  for (const off_t size : {20 * 4096, 20 * 4096 + 100}) {
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set plan = write_working_set(restore, fixture::one_page_groups({40}));
    plan.proven.reset();
    CHECK_EQ(::truncate(restore.path.c_str(), size), 0);
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    prefetch(prefetcher, client, plan);
    const reap::Failure prefetched = client->wait_for_prefetched().failure;
    CHECK_EQ(prefetched.code, ErrorCode::source_read);
    CHECK_EQ(prefetched.check, "cut-short");
    CHECK_EQ(prefetched.offset, 40 * 4096);
    prefetcher.fill(client);
    const auto [end, filled] = client->wait_for_filled();
    CHECK(end == Filled::failed);
    CHECK_EQ(filled.code, ErrorCode::source_read);
    CHECK_EQ(filled.check, "cut-short");
    for (uint64_t page = 20; page < 64; ++page) CHECK(!restore.guest.is_present(page));
  }
}
