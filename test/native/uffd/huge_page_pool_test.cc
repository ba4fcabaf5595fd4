// Guests whose huge pages are not reserved, while others have taken the whole pool.
#include <sys/mman.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using reap::FaultHandler;
using Filled = FaultHandler::Filled;
using Served = FaultHandler::Served;

class HugePages {
 public:
  size_t take_all() {
    while (take_one()) continue;
    return taken_.size();
  }
  void give_back() { taken_.clear(); }

 private:
  bool take_one() {
    void* page = ::mmap(nullptr, fixture::kHugePage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (page == MAP_FAILED) return false;
    taken_.push_back(reap::Mapping::adopt(page, fixture::kHugePage));
    return true;
  }

  std::vector<reap::Mapping> taken_;
};

fixture::Shape unreserved(uint64_t pages) {
  fixture::Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {pages};
  shape.reserve = false;
  return shape;
}

// A guest beside the pool that it needs.
class Guest {
 public:
  explicit Guest(uint64_t pages) : restore(unreserved(pages)) {
    CHECK(buffers_.reserve(fixture::kHugePage));
  }

  // Takes the whole pool. Returns what this machine lacks, or empty.
  std::string empty_the_pool() {
    if (!restore.missing().empty()) return restore.missing();
    const uint64_t pages = restore.shape.pages();
    if (pool_.take_all() >= pages) return "";
    return "needs " + std::to_string(pages) + " free 2 MiB pages (vm.nr_hugepages)";
  }
  void give_back() { pool_.give_back(); }
  Served serve() {
    return restore.handler->serve(buffers_, std::chrono::nanoseconds(0), [] { return true; });
  }
  void wait_for_faults(unsigned long faults) const {
    fixture::eventually([&] { return restore.guest.faults_pending() == faults; });
  }

  Restore restore;

 private:
  HugePages pool_;
  reap::ServeBuffers buffers_;
};

}  // namespace

// The kernel then returns EEXIST as if the page were present.
TEST(an_empty_pool_of_huge_pages_is_waited_for) {
  Guest guest(2);
  Restore& restore = guest.restore;
  const std::string missing = guest.empty_the_pool();
  if (!missing.empty()) SKIP(missing);
  CHECK_EQ(restore.fill(0, 2), Filled::no_memory);
  CHECK_EQ(restore.get(Counter::prefetched) + restore.get(Counter::present), 0);
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(1)); });
  guest.wait_for_faults(1);
  CHECK(guest.serve() == Served::later);
  guest.give_back();
  CHECK(guest.serve() == Served::idle);
  vcpu.join();
  CHECK(restore.fill(0, 2) == Filled::all);
  CHECK(restore.has_file_bytes(0));
}

TEST(a_page_that_waits_for_memory_is_read_once) {
  Guest guest(3);
  Restore& restore = guest.restore;
  const std::string missing = guest.empty_the_pool();
  if (!missing.empty()) SKIP(missing);
  std::vector<std::thread> vcpus;
  for (const uint64_t page : {0, 1, 2}) {
    vcpus.emplace_back([&, page] { CHECK(restore.has_file_bytes(page)); });
  }
  guest.wait_for_faults(3);
  for (int attempt = 0; attempt < 5; ++attempt) {
    CHECK_EQ(guest.serve(), Served::later);
    CHECK(restore.handler->is_short_of_memory());
    CHECK_EQ(restore.get(Counter::bytes_read), fixture::kHugePage);
  }
  guest.give_back();
  // A turn may end before all pages are there.
  fixture::eventually([&] { return guest.serve() == Served::idle; });
  for (std::thread& vcpu : vcpus) vcpu.join();
  CHECK(!restore.handler->is_short_of_memory());
  CHECK_EQ(restore.get(Counter::bytes_read), 3 * fixture::kHugePage);
}

TEST(two_short_shortages_of_memory_do_not_add_up) {
  Guest guest(2);
  const auto began = std::chrono::steady_clock::now();
  for (const uint64_t page : {0, 1}) {
    const std::string missing = guest.empty_the_pool();
    if (!missing.empty()) SKIP(missing);
    std::thread vcpu([&] { CHECK(guest.restore.has_file_bytes(page)); });
    guest.wait_for_faults(1);
    CHECK_EQ(guest.serve(), Served::later);
    guest.give_back();
    CHECK_EQ(guest.serve(), Served::idle);
    vcpu.join();
    fixture::eventually(
        [&] { return std::chrono::steady_clock::now() - began > std::chrono::milliseconds(2200); });
  }
}

TEST(a_pool_of_huge_pages_that_stays_empty_ends_the_serving) {
  Guest guest(1);
  Restore& restore = guest.restore;
  const std::string missing = guest.empty_the_pool();
  if (!missing.empty()) SKIP(missing);
  std::thread vcpu([&] { fixture::peek(restore.guest.page(0)); });
  guest.wait_for_faults(1);
  Served served = Served::later;
  CHECK(fixture::in_time([&] {
    std::this_thread::sleep_for(FaultHandler::kMemoryWait);
    served = guest.serve();
    return served != Served::later;
  }));
  CHECK_EQ(served, Served::failed);
  CHECK(restore.handler->failure().code == reap::ErrorCode::fault_unresolved);
  CHECK_EQ(restore.handler->failure().err, -ENOMEM);
  guest.give_back();
  restore.guest.unregister_all();
  vcpu.join();
}
