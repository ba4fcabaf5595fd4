// The trace of a restore with a working set: what the faults that remain show of the guest's needs.
#include <cstdint>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using Filled = reap::FaultHandler::Filled;
using Pages = std::vector<uint32_t>;

// A recorded restore with pages 8 to 23 as its set, of which 12 and 13 are held out.
class Recorded : public Restore {
 public:
  explicit Recorded(uint64_t pages = 64) : Restore(of_pages(pages), true) {
    if (!missing().empty()) return;
    handler->expect_prefetch();
    handler->expect(8 * 4096, 16 * 4096);
    CHECK(handler->hold_out({12, 13}));
  }
  void prefetch() {
    CHECK(fill(8, 16) == Filled::all);
    handler->end_prefetch();
  }
  Pages recorded() {
    Pages pages;
    for (const auto& touch : trace.take()->touches) pages.push_back(touch.page);
    return pages;
  }

 private:
  static fixture::Shape of_pages(uint64_t pages) {
    fixture::Shape shape;
    shape.region_pages = {pages};
    return shape;
  }
};

}  // namespace

TEST(a_trace_beside_a_prefetch_has_late_residual_and_held_out_pages_in_their_order) {
  Recorded restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  for (const uint64_t page : {40, 9, 13, 20, 9}) CHECK(restore.has_file_bytes(page));
  restore.prefetch();
  for (const uint64_t page : {8, 20, 40, 12, 23, 41, 13}) CHECK(restore.has_file_bytes(page));
  servers.stop();
  CHECK_EQ(restore.get(Counter::late_faults), 2);
  CHECK_EQ(restore.get(Counter::residual_faults), 4);
  CHECK(restore.recorded() == Pages({40, 9, 13, 20, 12, 41}));
}

TEST(a_late_fault_that_the_prefetch_answers_is_in_the_trace) {
  Recorded restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(9)); });
  fixture::eventually([&] { return restore.get(Counter::late_faults) == 1; });
  restore.prefetch();
  vcpu.join();
  servers.stop();
  CHECK(restore.recorded() == Pages({9}));
}

TEST(a_page_that_was_given_back_is_not_in_the_trace_when_it_is_touched_again) {
  Recorded restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  // Before the prefetch has it, and while it is held out; after the prefetch; outside the set.
  CHECK(restore.guest.remove(9));
  CHECK(restore.guest.remove(12));
  restore.prefetch();
  CHECK(restore.has_file_bytes(20));
  CHECK(restore.guest.remove(20, 2));
  CHECK(restore.guest.remove(50));
  for (const uint64_t page : {9, 12, 20, 21, 50}) CHECK(restore.is_zero(page));
  // One that was touched before is there once.
  CHECK(restore.has_file_bytes(40));
  CHECK(restore.guest.remove(40));
  CHECK(restore.is_zero(40));
  servers.stop();
  CHECK_EQ(restore.get(Counter::residual_faults), 7);
  CHECK(restore.recorded() == Pages({40}));
}

TEST(pages_are_installed_ahead_of_faults_once_the_trace_is_taken) {
  Recorded restore(256);
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  restore.prefetch();
  for (uint64_t page = 100; page < 132; ++page) CHECK(restore.has_file_bytes(page));
  CHECK_EQ(restore.recorded().size(), 32);
  CHECK_EQ(restore.get(Counter::ahead), 0);
  for (uint64_t page = 132; page < 148; ++page) CHECK(restore.has_file_bytes(page));
  fixture::eventually([&] { return restore.get(Counter::ahead) == 16; });
  servers.stop();
  CHECK_EQ(restore.recorded().size(), 32);
}
