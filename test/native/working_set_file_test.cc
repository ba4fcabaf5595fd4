// The data of a working-set file that several restores use: what is read and checked once.
#include "working_set_file.h"

#include <unistd.h>

#include <cstring>
#include <vector>

#include "check.h"
#include "prefetch_fixture.h"

namespace {

using fixture::Client;
using fixture::Counter;
using fixture::Group;
using fixture::Restore;
using fixture::Servers;
using reap::ErrorCode;
using reap::Plan;
using reap::Prefetcher;
using reap::WorkingSetFile;
using Read = reap::PageSource::Read;

const std::vector<Group> kGroups = {{{40, 3}, {50, 1}}, {{3, 2}, {9, 1}}, {{20, 4}}};
const std::vector<uint64_t> kPlanned = {40, 41, 42, 50, 3, 4, 9, 20, 21, 22, 23};
constexpr char kNeedsView[] = "needs a file system that tells what is cached, and Linux 5.14";

std::shared_ptr<const Plan> shared(const Plan& plan) { return std::make_shared<const Plan>(plan); }

// Into a buffer of its own.
struct Fetch {
  Fetch(WorkingSetFile& file, const Plan& plan, uint64_t group, bool has_others = false)
      : buffer(reap::Mapping::anonymous(plan.groups[group].data_bytes)),
        got(file.fetch(plan, group, buffer.data(), has_others)) {}
  bool is_view() const { return got.bytes != buffer.data(); }
  bool is_right(const Restore& restore, const std::vector<uint64_t>& pages) const {
    const uint8_t* bytes = got.bytes;
    for (const uint64_t page : pages) {
      if (std::memcmp(bytes, restore.bytes_of(page), 4096) != 0) return false;
      bytes += 4096;
    }
    return true;
  }
  reap::Mapping buffer;
  WorkingSetFile::Fetched got;
};

Plan settled_set(const Restore& restore) {
  const Plan plan = write_working_set(restore, kGroups);
  fixture::wait_until_settled(plan.path);
  return plan;
}

}  // namespace

TEST(a_file_that_is_in_use_is_opened_once) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Plan plan = settled_set(restore);
  const auto one = WorkingSetFile::open_proven(plan);
  CHECK(one);
  const uint64_t descriptors = fixture::descriptors_here();
  CHECK(WorkingSetFile::open_proven(plan) == one);
  CHECK_EQ(fixture::descriptors_here(), descriptors);
}

TEST(a_file_in_another_state_than_the_proof_is_not_opened) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Plan plan = settled_set(restore);
  const auto in_use = WorkingSetFile::open_proven(plan);  // known by its state as well
  CHECK(in_use);
  CHECK_EQ(::truncate(plan.path.c_str(), 8192), 0);
  CHECK(!WorkingSetFile::open_proven(plan));
  CHECK_EQ(::unlink(plan.path.c_str()), 0);
  CHECK(!WorkingSetFile::open_proven(plan));
}

TEST(a_group_that_was_checked_is_taken_from_the_page_cache_as_it_is) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Plan plan = settled_set(restore);
  auto file = WorkingSetFile::open_proven(plan);
  const Fetch first(*file, plan, 1);
  CHECK(!first.is_view());
  CHECK(first.is_right(restore, {3, 4, 9}));
  const Fetch again(*file, plan, 1);
  if (!again.is_view()) SKIP(kNeedsView);
  CHECK(again.got.read.read == Read::done);
  CHECK_EQ(again.got.checksum, plan.groups[1].checksum);
  CHECK(again.is_right(restore, {3, 4, 9}));
  CHECK(!Fetch(*file, plan, 0).is_view());
  // Also by a restore that comes when no other has the file any more.
  file.reset();
  CHECK(Fetch(*WorkingSetFile::open_proven(plan), plan, 1).is_view());
}

TEST(a_group_that_is_not_in_the_page_cache_is_read_and_checked_again) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Plan plan = settled_set(restore);
  {
    const auto file = WorkingSetFile::open_proven(plan);
    const Fetch first(*file, plan, 2);
    if (!Fetch(*file, plan, 2).is_view()) SKIP(kNeedsView);
  }
  fixture::forget_cached(plan.path);
  reap::CachedFile cached;
  CHECK_EQ(cached.open(plan.path), 0);
  if (cached.count(0, cached.pages()) > 0) SKIP("needs a folder whose files leave the page cache");
  const auto file = WorkingSetFile::open_proven(plan);
  const Fetch alone(*file, plan, 2);
  CHECK(!alone.is_view());
  CHECK(alone.is_right(restore, {20, 21, 22, 23}));
  CHECK(!Fetch(*file, plan, 2).is_view());  // read past the page cache
  const Fetch with_others(*file, plan, 2, true);
  CHECK(!with_others.is_view());
  CHECK(with_others.is_right(restore, {20, 21, 22, 23}));
  CHECK(Fetch(*file, plan, 2).is_view());
}

TEST(a_group_of_a_file_that_may_change_unseen_is_checked_each_time) {
  fixture::Hooks hooks;
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  const Plan plan = settled_set(restore);
  reap::hooks::is_young = [] { return true; };
  const auto file = WorkingSetFile::open_proven(plan);
  CHECK(!Fetch(*file, plan, 1).is_view());
  CHECK(!Fetch(*file, plan, 1).is_view());
}

TEST(a_damaged_group_is_never_taken_as_it_is) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  Plan plan = settled_set(restore);
  plan.groups[1].checksum ^= 1;
  const auto file = WorkingSetFile::open_proven(plan);
  for (int time = 0; time < 3; ++time) {
    const Fetch fetch(*file, plan, 1);
    CHECK(!fetch.is_view());
    CHECK(fetch.got.checksum != plan.groups[1].checksum);
  }
}

TEST(a_second_restore_of_a_set_has_the_right_bytes_from_its_mapping) {
  Restore first;
  if (!first.missing().empty()) SKIP(first.missing());
  Plan plan = settled_set(first);
  Restore second;  // of another file with the same bytes
  for (Restore* restore : {&first, &second}) {
    plan.proof->memory_file = restore->memory_file.stamp();
    Prefetcher prefetcher(2);
    const auto client = std::make_shared<Client>(*restore);
    prefetcher.start(client, shared(plan));
    prefetcher.connected(client.get());
    const reap::PrefetchReport& report = client->wait_for_prefetched();
    CHECK_EQ(report.failure.code, ErrorCode::none);
    CHECK(report.from_working_set);
    CHECK_EQ(report.pages, 11);
    CHECK_EQ(report.bytes, 11 * 4096);
    for (const uint64_t page : kPlanned) CHECK(restore->guest.is_present(page));
    for (const uint64_t page : kPlanned) CHECK(restore->has_file_bytes(page));
  }
}

// The worker is held when it is about to copy from the mapping.
TEST(a_set_that_is_cut_short_during_the_copy_is_completed_from_the_memory_file) {
  Restore restore;
  if (!restore.missing().empty()) SKIP(restore.missing());
  fixture::Hooks hooks;
  const Plan plan = settled_set(restore);
  const auto file = WorkingSetFile::open_proven(plan);
  for (uint64_t group = 0; group < 3; ++group) Fetch(*file, plan, group);
  if (!Fetch(*file, plan, 0).is_view()) SKIP(kNeedsView);
  fixture::Hold hold;
  reap::hooks::before_prefetch_install = hold.hook();
  Prefetcher prefetcher(1);
  const auto client = std::make_shared<Client>(restore);
  prefetcher.start(client, shared(plan));
  prefetcher.connected(client.get());
  hold.wait_until_held();
  CHECK_EQ(::truncate(plan.path.c_str(), 0), 0);
  hold.release();
  const reap::PrefetchReport& report = client->wait_for_prefetched();
  CHECK_EQ(report.failure.code, ErrorCode::none);
  CHECK(!report.from_working_set);
  CHECK_EQ(report.pages, 11);
  for (const uint64_t page : kPlanned) CHECK(restore.guest.is_present(page));
  for (const uint64_t page : kPlanned) CHECK(restore.has_file_bytes(page));
}
