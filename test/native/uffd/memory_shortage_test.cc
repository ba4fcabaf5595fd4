// VMMs without memory for a page: a pool of huge pages that is too small.
#include <sys/mman.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/guest_fixture.h"

namespace {

using fixture::Counter;
using fixture::Restore;
using fixture::Shape;
using Filled = reap::FaultHandler::Filled;
using Served = reap::FaultHandler::Served;

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

}  // namespace

// The kernel then returns EEXIST as if the page were present.
TEST(an_empty_pool_of_huge_pages_is_waited_for) {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {2};
  shape.reserve = false;
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  HugePages pool;
  if (pool.take_all() < 2) SKIP("needs 2 free 2 MiB pages (vm.nr_hugepages)");
  CHECK_EQ(restore.fill(0, 2), Filled::no_memory);
  CHECK_EQ(restore.get(Counter::prefetched) + restore.get(Counter::present), 0);
  std::thread vcpu([&] { CHECK(restore.has_file_bytes(1)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(fixture::kHugePage));
  const auto serve = [&] {
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
  };
  CHECK(serve() == Served::later);
  pool.give_back();
  CHECK(serve() == Served::idle);
  vcpu.join();
  CHECK(restore.fill(0, 2) == Filled::all);
  CHECK(restore.has_file_bytes(0));
}

TEST(a_page_that_waits_for_memory_is_read_once) {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {3};
  shape.reserve = false;
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  HugePages pool;
  if (pool.take_all() < 3) SKIP("needs 3 free 2 MiB pages (vm.nr_hugepages)");
  std::vector<std::thread> vcpus;
  for (const uint64_t page : {0, 1, 2}) {
    vcpus.emplace_back([&, page] { CHECK(restore.has_file_bytes(page)); });
  }
  fixture::eventually([&] { return restore.guest.faults_pending() == 3; });
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(fixture::kHugePage));
  const auto serve = [&] {
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
  };
  for (int attempt = 0; attempt < 5; ++attempt) {
    CHECK_EQ(serve(), Served::later);
    CHECK(restore.handler->is_short_of_memory());
    CHECK_EQ(restore.get(Counter::bytes_read), fixture::kHugePage);
  }
  pool.give_back();
  // A turn may end before all pages are there.
  fixture::eventually([&] { return serve() == Served::idle; });
  for (std::thread& vcpu : vcpus) vcpu.join();
  CHECK(!restore.handler->is_short_of_memory());
  CHECK_EQ(restore.get(Counter::bytes_read), 3 * fixture::kHugePage);
}

TEST(two_short_shortages_of_memory_do_not_add_up) {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.region_pages = {2};
  shape.reserve = false;
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  HugePages pool;
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(fixture::kHugePage));
  const auto serve = [&] {
    return restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
  };
  const auto began = std::chrono::steady_clock::now();
  for (const uint64_t page : {0, 1}) {
    if (pool.take_all() < 2) SKIP("needs 2 free 2 MiB pages (vm.nr_hugepages)");
    std::thread vcpu([&] { CHECK(restore.has_file_bytes(page)); });
    fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
    CHECK_EQ(serve(), Served::later);
    pool.give_back();
    CHECK_EQ(serve(), Served::idle);
    vcpu.join();
    fixture::eventually(
        [&] { return std::chrono::steady_clock::now() - began > std::chrono::milliseconds(2200); });
  }
}

TEST(a_pool_of_huge_pages_that_stays_empty_ends_the_serving) {
  Shape shape;
  shape.page_size = fixture::kHugePage;
  shape.reserve = false;
  shape.region_pages = {1};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  HugePages pool;
  if (pool.take_all() < 1) SKIP("needs a free 2 MiB page (vm.nr_hugepages)");
  std::thread vcpu([&] { fixture::peek(restore.guest.page(0)); });
  fixture::eventually([&] { return restore.guest.faults_pending() == 1; });
  reap::ServeBuffers buffers;
  CHECK(buffers.reserve(fixture::kHugePage));
  Served served = Served::later;
  CHECK(fixture::in_time([&] {
    std::this_thread::sleep_for(reap::FaultHandler::kMemoryWait);
    served = restore.handler->serve(buffers, std::chrono::nanoseconds(0), [] { return true; });
    return served != Served::later;
  }));
  CHECK_EQ(served, Served::failed);
  CHECK(restore.handler->failure().code == reap::ErrorCode::fault_unresolved);
  CHECK_EQ(restore.handler->failure().err, -ENOMEM);
  pool.give_back();
  restore.guest.unregister_all();
  vcpu.join();
}
