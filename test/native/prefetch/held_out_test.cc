// Pages of a working set that are held out: a fault shows whether the guest needs them, so that
// nothing may install them before.
#include <algorithm>
#include <string>
#include <vector>

#include "base/page.h"
#include "prefetch/prefetcher.h"
#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Set;
using fixture::Shape;
using reap::Prefetcher;
using Filled = reap::FaultHandler::Filled;

// As a session does at the handshake.
void expect(Restore& restore, const reap::Plan& plan, const std::vector<uint32_t>& held_out) {
  restore.handler->expect_prefetch();
  for (const reap::PlanExtent& extent : plan.extents) {
    restore.handler->expect(extent.first_page * reap::kPage, extent.page_count * reap::kPage);
  }
  CHECK(restore.handler->hold_out(held_out));
}

void prefetch(Prefetcher& prefetcher, const std::shared_ptr<Client>& client, const Set& set) {
  fixture::start(prefetcher, client, set);
  prefetcher.connected(client.get());
  client->wait_for_prefetched();
}

constexpr uint64_t kData = 12;  // pages with data, then zeros, of the set below
constexpr uint64_t kZeros = 4;

Set set_of(const Restore& restore) {
  return write_working_set(restore, {{{10, 5}, {30, 4, true}}, {{5, 3}, {50, 3}, {63, 1}}});
}

// In no order; the first ones are of the set, pages 40 and 64 are not, and the last is of no
// memory.
const std::vector<uint32_t> kHeldOut = {31, 12, 63, 5, 10, 52, 40, 64, 1u << 30};
constexpr uint64_t kHeldOutData = 5;

}  // namespace

TEST(pages_that_are_held_out_are_left_to_faults_whatever_the_source) {
  for (const bool proven : {true, false}) {
    check::about = proven ? "from the working-set file" : "from the memory file";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set set = set_of(restore);
    if (!proven) set.proven.reset();
    expect(restore, set, kHeldOut);
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    prefetch(prefetcher, client, set);
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.from_working_set, proven);
    CHECK_EQ(report.pages, kData + kZeros - kHeldOutData - 1);
    for (const reap::PlanExtent& extent : set.extents) {
      for (uint32_t i = 0; i < extent.page_count; ++i) {
        const uint32_t page = extent.first_page + i;
        const bool held_out = std::count(kHeldOut.begin(), kHeldOut.end(), page) > 0;
        CHECK_EQ(restore.guest.is_present(page), !held_out);
      }
    }
    {
      Servers servers(*restore.handler);
      // Without a proof, the memory file has bytes where this set has zeros.
      for (uint64_t page = 30; page < 34; ++page) {
        CHECK(proven && page != 31 ? restore.is_zero(page) : restore.has_file_bytes(page));
      }
      for (const uint64_t page : {10, 11, 12, 13, 14, 5, 6, 7, 50, 51, 52, 63}) {
        CHECK(restore.has_file_bytes(page));
      }
    }
    CHECK_EQ(restore.get(Counter::residual_faults), kHeldOutData + 1);
    CHECK_EQ(restore.get(Counter::late_faults), 0);
    CHECK_EQ(restore.get(Counter::prefetched), report.pages);
  }
}

TEST(zero_pages_and_holes_can_be_held_out) {
  Shape shape;
  shape.holes = {30, 31, 32, 33};
  for (const bool proven : {true, false}) {
    check::about = proven ? "from the working-set file" : "from the memory file";
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set set = write_working_set(restore, {{{30, 4, true}}});
    if (!proven) set.proven.reset();
    expect(restore, set, {33, 30});
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    prefetch(prefetcher, client, set);
    CHECK_EQ(client->wait_for_prefetched().pages, 2);
    for (uint64_t page = 30; page < 34; ++page) {
      CHECK_EQ(restore.guest.is_present(page), page == 31 || page == 32);
    }
    Servers servers(*restore.handler);
    for (uint64_t page = 30; page < 34; ++page) CHECK(restore.is_zero(page));
    servers.stop();
    CHECK_EQ(restore.get(Counter::residual_faults), 2);
  }
}

TEST(a_huge_page_is_held_out_by_its_number) {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {8};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Set set = write_working_set(restore, {{{512, 512}, {1536, 512}, {3584, 512}}});
  expect(restore, set, {3, 512});
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, set);
  CHECK_EQ(client->wait_for_prefetched().pages, 2);
  for (uint64_t page = 0; page < 8; ++page) {
    CHECK_EQ(restore.guest.is_present(page), page == 1 || page == 7);
  }
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(3));
  servers.stop();
  CHECK_EQ(restore.get(Counter::residual_faults), 1);
}

TEST(a_fault_on_a_page_that_is_held_out_does_not_wait_for_the_prefetch) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Set set = set_of(restore);
  expect(restore, set, kHeldOut);
  fixture::Hold hold;
  reap::hooks::before_prefetch_install = hold.hook();
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, set);
  prefetcher.connected(client.get());
  hold.wait_until_held();
  {
    Servers servers(*restore.handler);
    CHECK(restore.has_file_bytes(12));
    CHECK(!client->is_prefetched());
    CHECK(!restore.handler->holds_faults());
  }
  hold.release();
  CHECK_EQ(client->wait_for_prefetched().pages, kData + kZeros - kHeldOutData - 1);
  CHECK_EQ(restore.get(Counter::residual_faults), 1);
}

TEST(a_page_that_is_held_out_is_not_installed_ahead_of_faults) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Set set = write_working_set(restore, fixture::one_page_groups({20, 60}));
  expect(restore, set, {20});
  restore.handler->end_prefetch();
  Servers servers(*restore.handler);
  for (uint64_t page = 0; page < 16; ++page) CHECK(restore.has_file_bytes(page));
  fixture::eventually([&] { return restore.get(Counter::ahead) == 15; });
  for (uint64_t page = 16; page < 32; ++page) {
    CHECK_EQ(restore.guest.is_present(page), page != 20);
  }
  // The run goes on behind it.
  for (uint64_t page = 16; page < 33; ++page) CHECK(restore.has_file_bytes(page));
  fixture::eventually([&] { return restore.get(Counter::ahead) > 15; });
  servers.stop();
}

TEST(detach_installs_pages_that_are_held_out) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Set set = set_of(restore);
  expect(restore, set, kHeldOut);
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, set);
  prefetcher.fill(client);
  CHECK(client->wait_for_filled().first == Filled::all);
  for (uint64_t page = 0; page < 64; ++page) CHECK(restore.guest.is_present(page));
}

TEST(a_page_that_is_held_out_and_given_back_reads_as_zeros) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Set set = set_of(restore);
  expect(restore, set, kHeldOut);
  Servers servers(*restore.handler);
  CHECK(restore.guest.remove(12));
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetch(prefetcher, client, set);
  CHECK(!restore.guest.is_present(12));
  CHECK(restore.is_zero(12));
}
