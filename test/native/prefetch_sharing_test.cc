// Restores of one working set at the same time: what one has fetched, all install.
#include <string>

#include "check.h"
#include "prefetch_fixture.h"
#include "prefetcher.h"
#include "shared_groups.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Restore;
using fixture::Servers;
using reap::ErrorCode;
using reap::Plan;
using reap::Prefetcher;
using reap::SharedGroups;
using State = SharedGroups::State;

constexpr uint32_t kPages = 20;  // fewer than the pool has buffers

SharedGroups::Buffer some_buffer() {
  return std::make_shared<reap::Mapping>(reap::Mapping::anonymous(4096));
}

// A client that can be held between the read of a group and what follows.
class HeldReader : public Client {
 public:
  explicit HeldReader(Restore& restore) : Client(restore) {}
  const reap::PageSource& memory_file() override {
    if (holds) hold_();
    return Client::memory_file();
  }
  void wait_until_held() const { hold_.wait_until_held(); }
  void release() { hold_.release(); }
  std::atomic<bool> holds{false};

 private:
  fixture::Hold hold_;
};

// Restores with a snapshot each, which hold the same bytes, and one set for all.
class Crowd {
 public:
  explicit Crowd(size_t restores) {
    for (size_t i = 0; i < restores; ++i) all_.push_back(std::make_unique<Restore>());
    std::vector<uint32_t> order;
    for (uint32_t page = 0; page < kPages; ++page) order.push_back(page * 3);
    if (missing().empty()) plan = write_working_set(*all_[0], fixture::one_page_groups(order));
  }
  const std::string& missing() const { return all_[0]->missing(); }
  Restore& operator[](size_t i) { return *all_[i]; }
  void start(Prefetcher& prefetcher, size_t i, const std::shared_ptr<Client>& client) {
    Plan own = plan;
    own.proof->memory_file = all_[i]->memory_file.stamp();
    prefetcher.start(client, std::make_shared<const Plan>(std::move(own)));
  }
  uint64_t pages_read() const {
    uint64_t bytes = 0;
    for (const auto& restore : all_) bytes += restore->get(Counter::bytes_read);
    return bytes / 4096;
  }
  bool has_all(size_t i, const std::shared_ptr<Client>& client) {
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    bool good = !report.failure && report.pages == kPages && report.from_working_set;
    for (uint64_t page = 0; page < uint64_t{kPages} * 3; page += 3) {
      good = good && all_[i]->guest.is_present(page) && all_[i]->has_file_bytes(page);
    }
    return good;
  }

  Plan plan;

 private:
  std::vector<std::unique_ptr<Restore>> all_;
};

}  // namespace

TEST(a_group_is_absent_until_it_was_read) {
  Restore restore;
  const Plan plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  SharedGroups groups(plan);
  CHECK(groups.state_of(1) == State::absent);
  groups.begin(1);
  CHECK(groups.state_of(1) == State::being_read);
  groups.end(1, nullptr);
  CHECK(groups.state_of(1) == State::absent);
  groups.begin(1);
  const auto data = some_buffer();
  groups.end(1, data);
  CHECK(groups.state_of(1) == State::there);
  CHECK(groups.data_of(1) == data);
  CHECK(groups.state_of(0) == State::absent);
}

TEST(a_group_that_is_being_installed_is_not_taken_out) {
  Restore restore;
  const Plan plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  SharedGroups groups(plan);
  groups.end(0, some_buffer());
  auto held = groups.data_of(0);
  CHECK(!groups.take_free());
  held.reset();
  CHECK(groups.take_free());
  CHECK(groups.state_of(0) == State::absent);
}

TEST(groups_are_those_of_the_same_bytes_in_the_same_file) {
  Restore restore;
  const Plan plan = write_working_set(restore, fixture::one_page_groups({1, 2}));
  const SharedGroups groups(plan);
  CHECK(groups.are_of(plan));
  Plan other = plan;
  other.groups[1].checksum ^= 1;
  CHECK(!groups.are_of(other));
  other = plan;
  other.groups.pop_back();
  CHECK(!groups.are_of(other));
  other = plan;
  other.proof->working_set[4] += 1;
  CHECK(!groups.are_of(other));
}

TEST(restores_of_one_set_read_it_once_from_the_disk) {
  fixture::Hooks hooks;
  Crowd crowd(4);
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
  // But for what a thread reads before it is known that reads wait, or that there is another.
  CHECK(crowd.pages_read() >= kPages);
  CHECK(crowd.pages_read() <= kPages + 12);
}

TEST(a_damaged_group_fails_each_restore_of_the_set) {
  Crowd crowd(3);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  crowd.plan.groups[7].checksum ^= 1;
  std::vector<std::shared_ptr<Client>> clients;
  Prefetcher prefetcher(2);
  for (size_t i = 0; i < 3; ++i) {
    clients.push_back(std::make_shared<Client>(crowd[i]));
    crowd.start(prefetcher, i, clients[i]);
  }
  for (const auto& client : clients) prefetcher.connected(client.get());
  for (size_t i = 0; i < 3; ++i) {
    CHECK_EQ(clients[i]->wait_for_prefetched().failure.check, "group-checksum");
    Servers servers(*crowd[i].handler);
    for (uint64_t page = 0; page < 64; ++page) CHECK(crowd[i].has_file_bytes(page));
  }
}

TEST(a_vm_whose_install_does_not_end_keeps_no_group_from_others) {
  fixture::Hooks hooks;
  Crowd crowd(2);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  reap::hooks::is_cold = [] { return true; };
  fixture::Hold install;
  reap::hooks::before_prefetch_install = install.hook();
  const auto stuck = std::make_shared<Client>(crowd[0]);
  const auto other = std::make_shared<Client>(crowd[1]);
  Prefetcher prefetcher(2);
  crowd.start(prefetcher, 0, stuck);
  crowd.start(prefetcher, 1, other);
  prefetcher.connected(stuck.get());
  install.wait_until_held();
  prefetcher.connected(other.get());
  CHECK(crowd.has_all(1, other));
  CHECK(!stuck->is_prefetched());
  install.release();
  CHECK(crowd.has_all(0, stuck));
}

TEST(a_restore_that_ends_while_it_reads_for_others_leaves_them_what_it_read) {
  fixture::Hooks hooks;
  Crowd crowd(2);
  if (!crowd.missing().empty()) SKIP(crowd.missing());
  reap::hooks::is_cold = [] { return true; };
  const auto reader = std::make_shared<HeldReader>(crowd[0]);
  const auto other = std::make_shared<Client>(crowd[1]);
  Prefetcher prefetcher(2);
  crowd.start(prefetcher, 1, other);
  fixture::eventually([&] { return prefetcher.busy_workers() == 0; });
  crowd.start(prefetcher, 0, reader);
  reader->holds = true;
  prefetcher.connected(reader.get());
  reader->wait_until_held();
  prefetcher.connected(other.get());
  prefetcher.cancel(reader.get());
  reader->release();
  CHECK(crowd.has_all(1, other));
  fixture::eventually([&] { return reader.use_count() == 1; });
  CHECK(!reader->is_prefetched());
}
