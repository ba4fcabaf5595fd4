// Faults on pages that a prefetch is about to install.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using Filled = reap::FaultHandler::Filled;

// A guest that waits for page 8, which a prefetch is to install, and whose fault is held.
class HeldFault {
 public:
  explicit HeldFault(Restore& restore) : restore_(restore) {
    restore.handler->expect_prefetch([this](uint64_t offset) { wanted_.push_back(offset); });
    restore.handler->expect(8 * 4096, 4 * 4096);
    CHECK(buffers_.reserve(4096));
    vcpu_ = std::thread([this] { byte_ = fixture::peek(restore_.guest.page(8)); });
    fixture::eventually([&] { return restore_.guest.faults_pending() == 1; });
    since_ = std::chrono::steady_clock::now();
    serve();
  }
  ~HeldFault() {
    fixture::eventually([this] {
      serve();
      return !restore_.handler->holds_faults();
    });
    vcpu_.join();
  }
  void serve() {
    CHECK(restore_.handler->serve(buffers_, std::chrono::nanoseconds(0), [] { return true; }) !=
          reap::FaultHandler::Served::failed);
  }
  bool is_within_its_time() const {
    return std::chrono::steady_clock::now() - since_ < reap::FaultHandler::kMaxHold;
  }
  const std::vector<uint64_t>& wanted() const { return wanted_; }

 private:
  Restore& restore_;
  std::vector<uint64_t> wanted_;
  reap::ServeBuffers buffers_;
  std::thread vcpu_;
  std::atomic<uint8_t> byte_{0};
  std::chrono::steady_clock::time_point since_;
};

}  // namespace

TEST(faults_are_late_before_the_prefetch_brings_a_page_and_residual_elsewhere) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(8 * 4096, 4 * 4096);
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(8));
  CHECK(restore.has_file_bytes(11));
  CHECK_EQ(restore.get(Counter::late_faults), 2);
  CHECK(restore.has_file_bytes(7));
  CHECK(restore.has_file_bytes(12));
  CHECK_EQ(restore.get(Counter::residual_faults), 2);
  CHECK(restore.fill(8, 4) == Filled::all);
  CHECK_EQ(restore.get(Counter::prefetched), 2);
  restore.handler->end_prefetch();
  CHECK(restore.has_file_bytes(9));
  CHECK(restore.guest.remove(9));
  CHECK(restore.is_zero(9));
  CHECK_EQ(restore.get(Counter::late_faults), 2);
  CHECK_EQ(restore.get(Counter::residual_faults), 3);
  CHECK_EQ(restore.get(Counter::faults), 5);
}

// Which the prefetch does not install.
TEST(a_fault_on_a_removed_page_is_residual_during_the_prefetch_too) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(8 * 4096, 4 * 4096);
  Servers servers(*restore.handler);
  CHECK(restore.guest.remove(8));
  CHECK(restore.is_zero(8));
  CHECK_EQ(restore.get(Counter::late_faults), 0);
  CHECK_EQ(restore.get(Counter::residual_faults), 1);
}

TEST(a_late_fault_is_answered_by_the_batch_that_brings_its_page) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldFault held(restore);
  CHECK(restore.handler->holds_faults() || !held.is_within_its_time());
  CHECK_EQ(held.wanted().size(), 1);
  CHECK_EQ(held.wanted()[0], 8 * 4096);
  CHECK(restore.fill(8, 4) == Filled::all);
  const reap::FaultWaits::Report waits = restore.measured.waits.report();
  const bool was_held = waits.classes[static_cast<size_t>(reap::FaultClass::late)].count == 1;
  CHECK(was_held || !held.is_within_its_time());
  held.serve();
  CHECK(!restore.handler->holds_faults());
  CHECK(restore.has_file_bytes(8));
}

TEST(a_late_fault_whose_page_does_not_come_is_served_on_time) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  { HeldFault held(restore); }
  CHECK(restore.has_file_bytes(8));
  CHECK_EQ(restore.get(Counter::prefetched), 0);
  CHECK_EQ(restore.get(Counter::installed), 1);
}

TEST(a_late_fault_is_served_when_the_prefetch_ends_without_its_page) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldFault held(restore);
  restore.handler->end_prefetch();
  held.serve();
  CHECK(!restore.handler->holds_faults());
  CHECK(restore.guest.is_present(8));
  CHECK(restore.has_file_bytes(8));
}

TEST(a_late_fault_on_a_page_that_is_removed_meanwhile_gets_zeros) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldFault held(restore);
  std::thread balloon([&] { CHECK(restore.guest.remove(8)); });
  fixture::eventually([&] { return restore.guest.remove_is_pending(); });
  held.serve();
  balloon.join();
  held.serve();
  CHECK(!restore.handler->holds_faults());
  CHECK(restore.is_zero(8));
}

// VMMs may map memory anew, of which no event tells.
TEST(a_page_that_is_missing_again_during_the_prefetch_comes_at_its_end) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  HeldFault held(restore);
  CHECK(restore.fill(8, 4) == Filled::all);
  held.serve();
  CHECK(restore.guest.map_anew(9));
  fixture::Flag touched;
  std::thread vcpu([&] {
    CHECK(restore.has_file_bytes(9));
    touched.set();
  });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  held.serve();
  restore.handler->end_prefetch();
  CHECK(fixture::in_time([&] {
    held.serve();
    return touched.is_set();
  }));
  // Releases the guest if it waits after all.
  restore.guest.unregister_all();
  vcpu.join();
}

TEST(a_residual_fault_that_waits_at_the_end_of_the_prefetch_is_counted_once) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(8 * 4096, 4 * 4096);
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(3)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  fixture::Hooks hooks;
  fixture::Hold hold;
  reap::hooks::before_serve = hold.hook();
  Servers servers(*restore.handler, 2);
  hold.wait_until_held();
  restore.handler->end_prefetch();
  // The other thread would read the fault again if the guest were woken.
  CHECK(!fixture::Flag().set_within_a_moment());
  hold.release();
  vcpu.join();
  CHECK_EQ(restore.get(Counter::residual_faults), 1);
}

// On a busy machine its thread may lose its core between the read and the count.
TEST(a_fault_that_its_batch_answers_before_it_is_counted_is_late) {
  fixture::Hooks hooks;
  fixture::Hold hold;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  restore.handler->expect_prefetch();
  restore.handler->expect(8 * 4096, 4 * 4096);
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(8)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  reap::hooks::after_drain = hold.hook();
  Servers servers(*restore.handler);
  hold.wait_until_held();
  CHECK(restore.fill(8, 4) == Filled::all);
  restore.handler->end_prefetch();
  hold.release();
  vcpu.join();
  servers.stop();
  CHECK_EQ(restore.get(Counter::late_faults), 1);
  CHECK_EQ(restore.get(Counter::residual_faults), 0);
}

TEST(faults_are_neither_late_nor_residual_without_a_prefetch) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(8));
  CHECK_EQ(restore.get(Counter::faults), 1);
  CHECK_EQ(restore.get(Counter::late_faults) + restore.get(Counter::residual_faults), 0);
}
