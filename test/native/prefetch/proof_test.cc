// Source of a prefetch's bytes: the working-set file while both files are in the states that the
// proof names, and otherwise the memory file.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <string>
#include <thread>

#include "prefetch/prefetcher.h"
#include "support/check.h"
#include "support/prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Group;
using fixture::has_false_bytes;
using fixture::Restore;
using fixture::Servers;
using fixture::Set;
using fixture::Shape;
using reap::ErrorCode;
using reap::FileChange;
using reap::Plan;
using reap::Prefetcher;

constexpr uint64_t kPages = 64;

const std::vector<Group> kGroups = {{{40, 3}, {50, 1}}, {{3, 2}, {9, 1}}, {{20, 4}}};
const std::vector<uint64_t> kPlanned = {40, 41, 42, 50, 3, 4, 9, 20, 21, 22, 23};

void write_page(const std::string& path, uint64_t page, uint8_t value) {
  const reap::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::vector<uint8_t> bytes(4096, value);
  CHECK_EQ(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(page * 4096)), 4096);
}

void write_byte_as_it_is(const std::string& path) {
  const reap::UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  uint8_t byte = 0;
  CHECK_EQ(::pread(file.get(), &byte, 1, 5000), 1);
  CHECK_EQ(::pwrite(file.get(), &byte, 1, 5000), 1);
}

// Restores the times of the last access and write, which leaves a change of status only.
class Times {
 public:
  explicit Times(std::string path) : path_(std::move(path)) {
    CHECK_EQ(::stat(path_.c_str(), &before_), 0);
  }
  void set_back() const {
    const timespec times[] = {before_.st_atim, before_.st_mtim};
    CHECK_EQ(::utimensat(AT_FDCWD, path_.c_str(), times, 0), 0);
  }

 private:
  std::string path_;
  struct stat before_ {};
};

// A waiting vCPU resumes when its memory is unregistered.
void a_fault_fails_as_changed(Restore& restore, const Servers& servers, uint64_t page) {
  std::thread vcpu([&] { fixture::peek(restore.guest.page(page)); });
  CHECK(servers.wait_for_end() == reap::FaultHandler::Served::failed);
  CHECK_EQ(restore.handler->failure().check, "changed");
  restore.guest.unregister_all();
  vcpu.join();
}

// Proves the set for a memory file whose stamp differs in one field.
void prove_of_other(const Restore& restore, Set& set, size_t field) {
  reap::FileStamp other = restore.memory_file.stamp();
  other[field] += 1;
  prove(set, other);
}

const reap::PrefetchReport& prefetch(Prefetcher& prefetcher, const std::shared_ptr<Client>& client,
                                     const Set& set) {
  fixture::start(prefetcher, client, set);
  prefetcher.connected(client.get());
  return client->wait_for_prefetched();
}

}  // namespace

TEST(bytes_of_a_set_are_installed_only_if_they_are_proven) {
  struct Row {
    const char* name;
    std::function<void(Restore&, Set&)> edit;
    bool is_proven;
  };
  const Row rows[] = {
      {"proven", [](Restore&, Set&) {}, true},
      {"not proven", [](Restore&, Set& set) { set.proven.reset(); }, false},
      {"another memory file", [](Restore& restore, Set& set) { prove_of_other(restore, set, 1); },
       false},
      {"a memory file of another time",
       [](Restore& restore, Set& set) { prove_of_other(restore, set, 4); }, false},
      {"a set of another mode",
       [](Restore&, Set& set) { CHECK_EQ(::chmod(set.path.c_str(), 0640), 0); }, false},
      {"no set any more", [](Restore&, Set& set) { CHECK_EQ(::unlink(set.path.c_str()), 0); },
       false},
      {"a set that was cut",
       [](Restore&, Set& set) { CHECK_EQ(::truncate(set.path.c_str(), 2 * 4096), 0); }, false},
  };
  for (const Row& row : rows) {
    check::about = row.name;
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set plan = write_false_set(restore, kGroups);
    fixture::wait_until_settled(plan.path);
    row.edit(restore, plan);
    Prefetcher prefetcher(2, 1);
    const auto client = std::make_shared<Client>(restore);
    const reap::PrefetchReport& report = prefetch(prefetcher, client, plan);
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK_EQ(report.pages, kPlanned.size());
    CHECK_EQ(report.bytes, kPlanned.size() * 4096);
    CHECK_EQ(report.from_working_set, row.is_proven);
    for (const uint64_t page : kPlanned) {
      CHECK(restore.guest.is_present(page));
      CHECK(row.is_proven ? has_false_bytes(restore, page) : restore.has_file_bytes(page));
    }
    CHECK(!restore.guest.is_present(0));
  }
}

TEST(zero_extents_of_a_set_that_is_not_proven_have_the_bytes_of_the_memory_file) {
  Shape shape;
  shape.holes = {12, 13, 30};
  for (const bool cold : {false, true}) {
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    fixture::Hooks hooks;
    if (cold) reap::hooks::is_cold = [] { return true; };
    Set plan = write_false_set(restore, {{{10, 4, true}, {20, 2, true}, {30, 1}}});
    plan.proven.reset();
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    CHECK_EQ(prefetch(prefetcher, client, plan).pages, 7);
    for (const uint64_t page : {10, 11, 20, 21}) CHECK(restore.has_file_bytes(page));
    for (const uint64_t page : {12, 13, 30}) CHECK(restore.is_zero(page));
    CHECK_EQ(restore.get(Counter::zero), 1);  // 12 and 13 were read with their neighbours
  }
}

// A change of a file that leaves its content.
struct Touch {
  const char* name;
  std::function<void(const std::string&)> touch;
};
const Touch kTouches[] = {
    {"mode", [](const std::string& path) { CHECK_EQ(::chmod(path.c_str(), 0640), 0); }},
    {"link",
     [](const std::string& path) { CHECK_EQ(::link(path.c_str(), (path + ".link").c_str()), 0); }},
    {"write, and the time set back",
     [](const std::string& path) {
       const Times times(path);
       write_byte_as_it_is(path);
       times.set_back();
     }},
};

TEST(no_more_bytes_come_from_a_set_that_changes_during_the_prefetch) {
  for (const Touch& change : kTouches) {
    check::about = change.name;
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    fixture::Hooks hooks;
    const Set plan = write_false_set(restore, kGroups);
    fixture::wait_until_settled(plan.path);
    fixture::Hold hold;
    reap::hooks::before_prefetch_install = hold.hook();
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, plan);
    prefetcher.connected(client.get());
    hold.wait_until_held();
    change.touch(plan.path);
    hold.release();
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK(!report.from_working_set);
    // The first group was read while the proof was valid.
    for (const uint64_t page : {40, 41, 42, 50}) CHECK(has_false_bytes(restore, page));
    for (const uint64_t page : {3, 4, 9, 20, 21, 22, 23}) CHECK(restore.has_file_bytes(page));
  }
}

TEST(after_a_change_of_status_the_bytes_come_from_the_memory_file) {
  for (const Touch& change : kTouches) {
    check::about = change.name;
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    fixture::Hooks hooks;
    fixture::Hold hold;
    reap::hooks::before_prefetch_install = hold.hook();
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, write_false_set(restore, kGroups));
    prefetcher.connected(client.get());
    hold.wait_until_held();
    change.touch(restore.path);
    hold.release();
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK(!report.from_working_set);
    for (const uint64_t page : {3, 4, 9, 20, 21, 22, 23}) CHECK(restore.has_file_bytes(page));
  }
}

TEST(a_write_to_the_memory_file_under_a_guest_fails_the_prefetch_and_its_faults) {
  for (const bool proven : {true, false}) {
    check::about = proven ? "proven" : "not proven";
    Shape shape;
    shape.region_pages = {1024};
    Restore restore(shape);
    if (!restore.missing().empty()) SKIP(restore.missing());
    fixture::Hooks hooks;
    fixture::Hold hold;
    reap::hooks::before_prefetch_install = hold.hook();
    Set plan = write_working_set(restore, {{{300, 256}}, {{600, 256}}, {{0, 100}}});
    if (!proven) plan.proven.reset();
    Prefetcher prefetcher(1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, plan);
    prefetcher.connected(client.get());
    hold.wait_until_held();
    write_byte_as_it_is(restore.path);
    hold.release();
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::source_read);
    CHECK_EQ(report.failure.check, "changed");
    CHECK(!restore.guest.is_present(20));
    CHECK(!restore.guest.is_present(600));
    prefetcher.fill(client);
    CHECK_EQ(client->wait_for_filled().second.check, "changed");
    Servers servers(*restore.handler);
    a_fault_fails_as_changed(restore, servers, 60);
  }
}

TEST(a_memory_file_that_changes_before_the_handshake_is_fetched_again) {
  for (const bool proven : {true, false}) {
    check::about = proven ? "proven" : "not proven";
    Restore restore;
    if (!restore.missing().empty()) SKIP(restore.missing());
    Set plan = write_working_set(restore, kGroups);
    if (!proven) plan.proven.reset();
    Prefetcher prefetcher(2, 1);
    const auto client = std::make_shared<Client>(restore);
    fixture::start(prefetcher, client, plan);
    fixture::eventually([&] { return restore.get(Counter::bytes_read) == kPlanned.size() * 4096; });
    const Times times(restore.path);
    write_page(restore.path, 41, 0x5a);
    times.set_back();
    restore.handshake();
    prefetcher.connected(client.get());
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK(!report.from_working_set);
    for (const uint64_t page : kPlanned) {
      if (page != 41) CHECK(restore.has_file_bytes(page));
    }
    CHECK_EQ(restore.guest.page(41)[17], 0x5a);
  }
}

TEST(a_memory_file_that_changes_before_the_handshake_is_no_longer_fetched_ahead_of_it) {
  Shape shape;
  shape.region_pages = {1024};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  std::atomic<int> reads{0};
  reap::hooks::is_cold = [&] {
    if (++reads == 1) write_byte_as_it_is(restore.path);
    return false;
  };
  Set plan = write_working_set(restore, {{{0, 256}}, {{300, 256}}, {{600, 256}}});
  plan.proven.reset();
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, plan);
  fixture::eventually([&] { return reads > 0 && prefetcher.busy_workers() == 0; });
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(reads, 1);
  restore.handshake();
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().failure.code, ErrorCode::none);
  CHECK_EQ(reads, 4);
  for (const uint64_t page : {0, 255, 300, 855}) CHECK(restore.has_file_bytes(page));
}

TEST(a_memory_file_that_may_change_without_a_trace_is_not_fetched_ahead_of_the_handshake) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  reap::hooks::is_young = [] { return true; };
  Prefetcher prefetcher(1, 1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, write_working_set(restore, kGroups));
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(restore.get(Counter::bytes_read), 0);
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, kPlanned.size());
  for (const uint64_t page : kPlanned) CHECK(restore.has_file_bytes(page));
}

TEST(a_hole_punched_under_a_guest_fails_its_faults_and_its_detach) {
  Shape shape;
  shape.holes = {0};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  Servers servers(*restore.handler);
  CHECK(restore.has_file_bytes(20));
  CHECK(restore.is_zero(0));
  {
    const reap::UniqueFd file(::open(restore.path.c_str(), O_RDWR | O_CLOEXEC));
    CHECK_EQ(
        ::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 30 * 4096, 4 * 4096),
        0);
  }
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetcher.fill(client);
  CHECK_EQ(client->wait_for_filled().second.check, "changed");
  a_fault_fails_as_changed(restore, servers, 31);
}

TEST(a_memory_file_that_is_open_for_writing_is_not_fetched_ahead_of_the_handshake) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const reap::UniqueFd writer(::open(restore.path.c_str(), O_RDWR | O_CLOEXEC));
  CHECK(restore.memory_file.writers() == reap::Writers::some);
  Set plan = write_working_set(restore, kGroups);
  plan.proven.reset();
  Prefetcher prefetcher(1, 1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, plan);
  CHECK(!fixture::Flag().set_within_a_moment());
  CHECK_EQ(restore.get(Counter::bytes_read), 0);
  prefetcher.connected(client.get());
  CHECK_EQ(client->wait_for_prefetched().pages, kPlanned.size());
}

TEST(a_change_of_status_does_not_restart_a_prefetch_from_the_memory_file) {
  Shape shape;
  shape.region_pages = {1024};
  Restore restore(shape);
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  fixture::Hold hold;
  reap::hooks::before_prefetch_install = hold.hook();
  Set plan = write_working_set(restore, {{{0, 256}}, {{300, 256}}, {{600, 256}}});
  plan.proven.reset();
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  fixture::start(prefetcher, client, plan);
  prefetcher.connected(client.get());
  hold.wait_until_held();
  CHECK_EQ(::chmod(restore.path.c_str(), 0640), 0);
  hold.release();
  CHECK_EQ(client->wait_for_prefetched().pages, 768);
  CHECK_EQ(restore.get(Counter::bytes_read), 768 * 4096);
}

TEST(a_file_that_is_replaced_while_it_is_opened_is_read_through_one_descriptor) {
  const fixture::TempDir directory;
  const std::string path = directory.path("memory");
  const std::string other = directory.path("other");
  for (const std::string& name : {path, other}) {
    const reap::UniqueFd file(::open(name.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    CHECK_EQ(::ftruncate(file.get(), kPages * 4096), 0);
    write_page(name, 7, name == path ? 1 : 2);
  }
  fixture::Hooks hooks;
  reap::hooks::before_direct_open = [&] { CHECK_EQ(::rename(other.c_str(), path.c_str()), 0); };
  reap::hooks::is_cold = [] { return true; };
  reap::PageSource file;
  CHECK_EQ(file.open(path), 0);
  fixture::forget_cached(path);
  const reap::Mapping buffer = reap::Mapping::buffer(4096);
  CHECK(file.read_streaming(7 * 4096, buffer.data(), 4096).read == reap::PageSource::Read::done);
  CHECK_EQ(buffer.data()[0], 1);
}

TEST(a_change_of_times_owner_or_links_is_distinguished_from_a_write) {
  const reap::FileStamp stamp = {1, 2, 3, 4, 5};
  CHECK(reap::change_of(stamp, stamp) == FileChange::none);
  const reap::FileStamp later = {1, 2, 3, 4, 6};
  CHECK(reap::change_of(stamp, later) == FileChange::status);
  for (size_t i = 0; i < 4; ++i) {
    reap::FileStamp other = stamp;
    other[i] += 1;
    CHECK(reap::change_of(stamp, other) == FileChange::content);
  }
}

TEST(times_of_this_tick_do_not_show_the_next_write) {
  constexpr uint64_t kSecond = 1000000000;
  struct Row {
    const char* name;
    uint64_t changed_at;
    uint64_t age;
    uint64_t now;
    bool is_settled;
  };
  const Row rows[] = {
      {"this very tick", 5 * kSecond + 4, 0, 5 * kSecond + 4, false},
      {"the tick before", 5 * kSecond + 4, 0, 5 * kSecond + 5, true},
      {"the future", 7 * kSecond + 4, 0, 5 * kSecond + 5, false},
      {"this second, in whole seconds", 5 * kSecond, 0, 6 * kSecond - 1, false},
      {"the second before, in whole seconds", 5 * kSecond, 0, 6 * kSecond, true},
      {"not a minute old", 5 * kSecond + 4, 60 * kSecond, 65 * kSecond + 4, false},
      {"a minute old", 5 * kSecond + 4, 60 * kSecond, 65 * kSecond + 5, true},
      {"not a minute old, in whole seconds", 5 * kSecond, 60 * kSecond, 66 * kSecond - 1, false},
      {"a minute old, in whole seconds", 5 * kSecond, 60 * kSecond, 66 * kSecond, true},
  };
  for (const Row& row : rows) {
    check::about = row.name;
    CHECK_EQ(reap::is_settled_at(row.changed_at, row.age, row.now), row.is_settled);
  }
}

TEST(pages_are_grouped_in_first_touch_order_and_sorted_by_address_within_a_group) {
  Plan plan;
  plan.extents = {{0, 300, 900, 0}, {1000, 2, 5, reap::kZeroExtent}, {2000, 100, 0, 0}};
  const Plan places = memory_groups_of(plan);
  CHECK_EQ(places.groups.size(), 2);
  CHECK_EQ(places.extents.size(), 4);
  CHECK_EQ(places.groups[0].extent_count, 3);
  CHECK_EQ(places.groups[1].first_extent, 3);
  const auto is = [&](size_t i, uint32_t first, uint32_t count) {
    return places.extents[i].first_page == first && places.extents[i].page_count == count &&
           places.extents[i].flags == 0;
  };
  CHECK(is(0, 0, 154));
  CHECK(is(1, 1000, 2));
  CHECK(is(2, 2000, 100));
  CHECK(is(3, 154, 146));
  CHECK(memory_groups_of(Plan()).groups.empty());
}
