// Concurrent restores of one working set: a group that one has fetched is installed by all.
#include <string>

#include "prefetch/prefetcher.h"
#include "prefetch/shared_groups.h"
#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using fixture::Set;
using reap::ErrorCode;
using reap::Plan;
using reap::Prefetcher;
using reap::SharedGroups;
using State = SharedGroups::State;

constexpr uint32_t kPages = 40;  // more than the pool's buffers
constexpr uint64_t kAhead = 8;   // fetched by a restore before its VM connects while no read blocks

reap::Buffer some_buffer() {
  return std::make_shared<reap::Mapping>(reap::Mapping::anonymous(4096));
}

// A client that is held when it has read its third group, before the others have it: each of two
// workers may read one before it is known that reads block.
class HeldReader : public Client {
 public:
  explicit HeldReader(Restore& restore) : Client(restore) {}
  const reap::PageSource& memory_file() override {
    if (measurements().counters.get(Counter::bytes_read) >= uint64_t{2} * 4096) hold_();
    return Client::memory_file();
  }
  void wait_until_held() const { hold_.wait_until_held(); }
  void release() { hold_.release(); }

 private:
  fixture::Hold hold_;
};

// Restores of one snapshot each, with the same bytes, and one set for all.
class Crowd {
 public:
  explicit Crowd(size_t restores, uint32_t pages = kPages) : pages_(pages) {
    fixture::Shape shape;
    shape.region_pages = {uint64_t{kPages} * 3};
    for (size_t i = 0; i < restores; ++i) all_.push_back(std::make_unique<Restore>(shape));
    std::vector<uint32_t> order;
    for (uint32_t page = 0; page < pages; ++page) order.push_back(page * 3);
    if (missing().empty()) plan = write_working_set(*all_[0], fixture::one_page_groups(order));
  }
  const std::string& missing() const { return all_[0]->missing(); }
  Restore& operator[](size_t i) { return *all_[i]; }
  void start(Prefetcher& prefetcher, size_t i, const std::shared_ptr<Client>& client) {
    Set own = plan;
    prove(own, all_[i]->memory_file.stamp());
    fixture::start(prefetcher, client, own);
  }
  uint64_t pages_read() const {
    uint64_t bytes = 0;
    for (const auto& restore : all_) bytes += restore->get(Counter::bytes_read);
    return bytes / 4096;
  }
  bool has_all(size_t i, const std::shared_ptr<Client>& client) {
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    bool good = !report.failure && report.pages == pages_ && report.from_working_set;
    for (uint64_t page = 0; page < uint64_t{pages_} * 3; page += 3) {
      good = good && all_[i]->guest.is_present(page) && all_[i]->has_file_bytes(page);
    }
    return good;
  }

  Set plan;

 private:
  const uint32_t pages_;
  std::vector<std::unique_ptr<Restore>> all_;
};

}  // namespace

TEST(a_group_is_absent_until_it_has_been_read) {
  Restore restore;
  const Set plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  SharedGroups groups(plan, plan.proven->file.stamp());
  CHECK(groups.state_of(1) == State::absent);
  groups.begin(1);
  CHECK(groups.state_of(1) == State::being_read);
  groups.end(1, nullptr);
  CHECK(groups.state_of(1) == State::absent);
  groups.begin(1);
  const auto data = some_buffer();
  groups.end(1, data);
  CHECK(groups.state_of(1) == State::present);
  CHECK(groups.data_of(1) == data);
  CHECK(groups.state_of(0) == State::absent);
  CHECK(groups.any_present());
}

TEST(a_group_that_is_being_installed_is_not_taken_out) {
  Restore restore;
  const Set plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  SharedGroups groups(plan, plan.proven->file.stamp());
  groups.end(0, some_buffer());
  auto held = groups.data_of(0);
  CHECK(!groups.take_free());
  held.reset();
  CHECK(groups.take_free());
  CHECK(groups.state_of(0) == State::absent);
  CHECK(!groups.any_present());
}

TEST(groups_are_those_of_the_same_bytes_in_the_same_file) {
  Restore restore;
  const Set plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  reap::FileStamp stamp = plan.proven->file.stamp();
  const SharedGroups groups(plan, stamp);
  CHECK(groups.are_of(plan, stamp));
  Set other = plan;
  other.groups[1].checksum ^= 1;
  CHECK(!groups.are_of(other, stamp));
  other = plan;
  other.groups.pop_back();
  CHECK(!groups.are_of(other, stamp));
  other = plan;
  stamp[4] += 1;
  CHECK(!groups.are_of(other, stamp));
}

TEST(restores_of_one_set_read_it_once_from_the_disk) {
  fixture::Hooks hooks;
  constexpr uint32_t kGroups = 20;  // each stays until all restores have it
  Crowd crowd(4, kGroups);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  reap::hooks::is_cold = [] { return true; };
  std::vector<std::shared_ptr<Client>> clients;
  Prefetcher prefetcher(2, 2);
  for (size_t i = 0; i < 4; ++i) {
    clients.push_back(std::make_shared<Client>(crowd[i]));
    crowd.start(prefetcher, i, clients[i]);
  }
  for (const auto& client : clients) prefetcher.connected(client.get());
  for (size_t i = 0; i < 4; ++i) CHECK(crowd.has_all(i, clients[i]));
  // Except for reads before it is known that reads block, or that there is another restore.
  CHECK(crowd.pages_read() >= kGroups);
  CHECK(crowd.pages_read() < 2 * kGroups);
}

TEST(restores_that_hold_out_different_pages_share_what_one_of_them_read) {
  fixture::Hooks hooks;
  constexpr uint32_t kGroups = 20;
  Crowd crowd(4, kGroups);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  reap::hooks::is_cold = [] { return true; };
  std::vector<std::shared_ptr<Client>> clients;
  Prefetcher prefetcher(2, 2);
  for (uint32_t i = 0; i < 4; ++i) {
    for (uint32_t page = 0; page < kGroups; ++page) crowd[i].handler->expect(page * 3 * 4096, 4096);
    CHECK(crowd[i].handler->hold_out({i * 3, (i + 10) * 3}));
    clients.push_back(std::make_shared<Client>(crowd[i]));
    crowd.start(prefetcher, i, clients[i]);
  }
  for (const auto& client : clients) prefetcher.connected(client.get());
  for (uint32_t i = 0; i < 4; ++i) {
    check::about = "restore " + std::to_string(i);
    const reap::PrefetchReport& report = clients[i]->wait_for_prefetched();
    CHECK(report.from_working_set);
    CHECK_EQ(report.pages, kGroups - 2);
    for (uint32_t page = 0; page < kGroups; ++page) {
      CHECK_EQ(crowd[i].guest.is_present(uint64_t{page} * 3), page != i && page != i + 10);
    }
    Servers servers(*crowd[i].handler);
    for (uint32_t page = 0; page < kGroups; ++page) {
      CHECK(crowd[i].has_file_bytes(uint64_t{page} * 3));
    }
  }
  // A fault reads its page from the memory file.
  CHECK(crowd.pages_read() - 4 * 2 < 2 * kGroups);
}

// Two restores; the second one starts when the first one has fetched its share ahead. From then on
// reads block, and after one per worker they are shared.
class Pair {
 public:
  explicit Pair(unsigned workers) : prefetcher(workers) {
    reap::hooks::is_cold = [this] { return is_cold_.load(); };
  }
  void start(Crowd& crowd, const std::shared_ptr<Client>& first,
             const std::shared_ptr<Client>& second) {
    crowd.start(prefetcher, 0, first);
    fixture::eventually([&] { return crowd.pages_read() == kAhead; });
    is_cold_ = true;
    crowd.start(prefetcher, 1, second);
    prefetcher.connected(second.get());
  }
  Prefetcher prefetcher;

 private:
  std::atomic<bool> is_cold_{false};
};

TEST(a_damaged_group_fails_each_restore_of_the_set) {
  fixture::Hooks hooks;
  Crowd crowd(2);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  crowd.plan.groups[30].checksum ^= 1;
  const auto first = std::make_shared<Client>(crowd[0]);
  const auto second = std::make_shared<Client>(crowd[1]);
  Pair pair(1);
  pair.start(crowd, first, second);
  CHECK_EQ(second->wait_for_prefetched().failure.check, "group-checksum");
  pair.prefetcher.connected(first.get());
  CHECK_EQ(first->wait_for_prefetched().failure.check, "group-checksum");
  for (size_t i = 0; i < 2; ++i) {
    CHECK(!crowd[i].guest.is_present(uint64_t{30} * 3));
    Servers servers(*crowd[i].handler);
    for (uint64_t page = 0; page < uint64_t{kPages} * 3; ++page) {
      CHECK(crowd[i].has_file_bytes(page));
    }
  }
}

namespace {

// Whether a restore ends before it would read by itself what another one is reading, whose install
// hangs.
bool ends_beside_a_hung_install(Crowd& crowd) {
  fixture::Hooks hooks;
  fixture::Hold install;
  std::atomic<uint64_t> installs{0};
  reap::hooks::before_prefetch_install = [&] {
    if (++installs == kAhead + 4) install();
  };
  const auto other = std::make_shared<Client>(crowd[0]);
  const auto stuck = std::make_shared<Client>(crowd[1]);
  Pair pair(2);
  pair.start(crowd, other, stuck);
  install.wait_until_held();
  const auto began = SharedGroups::Clock::now();
  pair.prefetcher.connected(other.get());
  CHECK(crowd.has_all(0, other));
  const bool is_in_time = SharedGroups::Clock::now() - began < SharedGroups::kMaxWait;
  CHECK(!stuck->is_prefetched());
  install.release();
  CHECK(crowd.has_all(1, stuck));
  return is_in_time;
}

}  // namespace

TEST(a_vm_whose_install_hangs_keeps_no_group_from_others) {
  const std::string missing = Crowd(1).missing();
  if (!missing.empty()) SKIP(missing);
  // Repeated, since a busy machine may delay the restore.
  CHECK(fixture::in_time([] {
    Crowd crowd(2);
    return ends_beside_a_hung_install(crowd);
  }));
}

TEST(a_hung_read_is_waited_for_no_longer_than_its_limit) {
  fixture::Hooks hooks;
  Crowd crowd(2);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  const auto other = std::make_shared<Client>(crowd[0]);
  const auto reader = std::make_shared<HeldReader>(crowd[1]);
  Pair pair(2);
  pair.start(crowd, other, reader);
  reader->wait_until_held();
  pair.prefetcher.connected(other.get());
  CHECK(crowd.has_all(0, other));
  CHECK(!reader->is_prefetched());
  reader->release();
  CHECK(crowd.has_all(1, reader));
}

TEST(a_restore_that_ends_while_it_reads_for_others_leaves_them_the_data) {
  fixture::Hooks hooks;
  Crowd crowd(2);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  const auto other = std::make_shared<Client>(crowd[0]);
  const auto reader = std::make_shared<HeldReader>(crowd[1]);
  Pair pair(1);
  pair.start(crowd, other, reader);
  reader->wait_until_held();
  pair.prefetcher.connected(other.get());
  pair.prefetcher.cancel(reader.get());
  reader->release();
  CHECK(crowd.has_all(0, other));
  CHECK_EQ(crowd.pages_read(), kPages + 1);  // the one before it was known that reads block
  fixture::eventually([&] { return reader.use_count() == 1; });
  CHECK(!reader->is_prefetched());
}
