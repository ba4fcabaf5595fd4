// Working sets for a Restore, and a prefetcher's client without a session.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "prefetch/prefetcher.h"
#include "check.h"
#include "guest_fixture.h"

namespace fixture {

// Contiguous 4 KiB pages of the memory file.
struct Pages {
  uint32_t first;
  uint32_t count;
  bool zero = false;
};
using Group = std::vector<Pages>;

// Writes the file of a plan, and takes for proven that it is the memory file's.
inline void write_data(const Restore& restore, reap::Plan& plan, const std::vector<uint8_t>& data) {
  const reap::UniqueFd file(
      ::open(plan.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  CHECK_EQ(::write(file.get(), data.data(), data.size()), data.size());
  reap::PageSource written;
  CHECK_EQ(written.open(plan.path), 0);
  plan.proof = reap::Proof{restore.memory_file.stamp(), written.stamp()};
}

// Writes the data of a working-set file as prefetchers read it: groups, each at a page.
inline reap::Plan write_working_set(const Restore& restore, const std::vector<Group>& groups,
                                    const std::string& name = "working-set") {
  reap::Plan plan;
  plan.path = restore.directory.path(name);
  plan.page_size = restore.page_size();
  std::vector<uint8_t> data(kSmallPage);
  for (const Group& pages : groups) {
    reap::PlanGroup group{};
    group.data_offset = data.size();
    group.first_extent = static_cast<uint32_t>(plan.extents.size());
    group.extent_count = static_cast<uint32_t>(pages.size());
    for (const Pages& extent : pages) {
      plan.extents.push_back({extent.first, extent.count,
                              static_cast<uint32_t>(plan.extents.size()),
                              extent.zero ? reap::kZeroExtent : 0});
      if (extent.zero) continue;
      const auto from = restore.bytes.begin() + static_cast<long>(extent.first * kSmallPage);
      data.insert(data.end(), from, from + static_cast<long>(extent.count * kSmallPage));
    }
    group.data_bytes = static_cast<uint32_t>(data.size() - group.data_offset);
    group.checksum = reap::crc32c(data.data() + group.data_offset, group.data_bytes);
    plan.groups.push_back(group);
  }
  write_data(restore, plan, data);
  return plan;
}

// The same with every bit of the data wrong, and no checksum or stamp that says so: what the guest
// finds tells where its bytes came from.
inline reap::Plan write_false_set(const Restore& restore, const std::vector<Group>& groups) {
  reap::Plan plan = write_working_set(restore, groups);
  std::vector<uint8_t> data(kSmallPage);
  for (reap::PlanGroup& group : plan.groups) {
    const reap::PlanExtent* extent = plan.extents.data() + group.first_extent;
    for (uint32_t i = 0; i < group.extent_count; ++i, ++extent) {
      if (extent->flags & reap::kZeroExtent) continue;
      const auto from = restore.bytes.begin() + static_cast<long>(extent->first_page * kSmallPage);
      std::transform(from, from + static_cast<long>(extent->page_count * kSmallPage),
                     std::back_inserter(data), [](uint8_t byte) { return ~byte; });
    }
    group.checksum = reap::crc32c(data.data() + group.data_offset, group.data_bytes);
  }
  write_data(restore, plan, data);
  return plan;
}
inline bool has_false_bytes(const Restore& restore, uint64_t page) {
  const uint8_t* in_guest = restore.guest.page(page);
  return std::equal(in_guest, in_guest + kSmallPage, restore.bytes_of(page),
                    [](uint8_t one, uint8_t other) { return one == static_cast<uint8_t>(~other); });
}

// Groups of one extent of one page each.
inline std::vector<Group> one_page_groups(const std::vector<uint32_t>& pages) {
  std::vector<Group> groups;
  for (const uint32_t page : pages) groups.push_back({{page, 1}});
  return groups;
}

class Client : public reap::PrefetchClient {
 public:
  explicit Client(Restore& restore) : restore_(restore) {}

  reap::FaultHandler& handler() override { return *restore_.handler; }
  const reap::PageSource& memory_file() override { return restore_.memory_file; }
  reap::Ledger& ledger() override { return restore_.ledger; }
  const std::atomic<bool>& stopping() override { return stopping_; }
  void worker_serves() override {}
  void serve_beside_work(reap::ServeBuffers&) override {}
  void worker_is_away() override {}
  void on_prefetched(const reap::PrefetchReport& report) override {
    CHECK(!prefetched_.is_set());
    report_ = report;
    prefetched_.set();
  }
  void on_filled(reap::FaultHandler::Filled end, const reap::Failure& failure) override {
    end_ = end;
    failure_ = failure;
    filled_.set();
  }

  void stop() { stopping_ = true; }
  bool is_prefetched() const { return prefetched_.is_set(); }
  const reap::PrefetchReport& wait_for_prefetched() const {
    prefetched_.wait();
    return report_;
  }
  // The failure says why it did not come to Filled::all.
  std::pair<reap::FaultHandler::Filled, reap::Failure> wait_for_filled() const {
    filled_.wait();
    return {end_, failure_};
  }

 private:
  Restore& restore_;
  std::atomic<bool> stopping_{false};
  Flag prefetched_;
  Flag filled_;
  reap::PrefetchReport report_;
  reap::FaultHandler::Filled end_ = reap::FaultHandler::Filled::all;
  reap::Failure failure_;
};

}  // namespace fixture
