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
#include "check.h"
#include "guest_fixture.h"
#include "prefetch/prefetcher.h"

namespace fixture {

// Contiguous 4 KiB pages of the memory file.
struct Pages {
  uint32_t first;
  uint32_t count;
  bool zero = false;
};
using Group = std::vector<Pages>;

// A plan and the file with its data.
struct Set : reap::Plan {
  std::string path;
  std::shared_ptr<const reap::ProvenFile> proven;
};

// Declares proven that the file's bytes are those of the memory file in this state.
inline void prove(Set& set, const reap::FileStamp& memory_file) {
  reap::PageSource file;
  CHECK_EQ(file.open(set.path), 0);
  set.proven =
      std::make_shared<const reap::ProvenFile>(reap::ProvenFile{std::move(file), memory_file});
}

inline void start(reap::Prefetcher& prefetcher, std::shared_ptr<reap::PrefetchClient> client,
                  const Set& set) {
  prefetcher.start(std::move(client), std::make_shared<const reap::Plan>(set), set.proven);
}

inline void write_data(const Restore& restore, Set& set, const std::vector<uint8_t>& data) {
  const reap::UniqueFd file(
      ::open(set.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  CHECK_EQ(::write(file.get(), data.data(), data.size()), data.size());
  prove(set, restore.memory_file.stamp());
}

// Writes the data of a working-set file as prefetchers read it: groups, each page-aligned.
inline Set write_working_set(const Restore& restore, const std::vector<Group>& groups,
                             const std::string& name = "working-set") {
  Set set;
  set.path = restore.directory.path(name);
  set.page_size = restore.page_size();
  std::vector<uint8_t> data(kSmallPage);
  for (const Group& pages : groups) {
    reap::PlanGroup group{};
    group.data_offset = data.size();
    group.first_extent = static_cast<uint32_t>(set.extents.size());
    group.extent_count = static_cast<uint32_t>(pages.size());
    for (const Pages& extent : pages) {
      set.extents.push_back({extent.first, extent.count, static_cast<uint32_t>(set.extents.size()),
                             extent.zero ? reap::kZeroExtent : 0});
      if (extent.zero) continue;
      const auto from = restore.bytes.begin() + static_cast<long>(extent.first * kSmallPage);
      data.insert(data.end(), from, from + static_cast<long>(extent.count * kSmallPage));
    }
    group.data_bytes = static_cast<uint32_t>(data.size() - group.data_offset);
    group.checksum = reap::crc32c(data.data() + group.data_offset, group.data_bytes);
    set.groups.push_back(group);
  }
  write_data(restore, set, data);
  return set;
}

// The same with all bits of the data inverted, and matching checksums: the bytes in the guest show
// where they came from.
inline Set write_false_set(const Restore& restore, const std::vector<Group>& groups) {
  Set set = write_working_set(restore, groups);
  std::vector<uint8_t> data(kSmallPage);
  for (reap::PlanGroup& group : set.groups) {
    const reap::PlanExtent* extent = set.extents.data() + group.first_extent;
    for (uint32_t i = 0; i < group.extent_count; ++i, ++extent) {
      if (extent->flags & reap::kZeroExtent) continue;
      const auto from = restore.bytes.begin() + static_cast<long>(extent->first_page * kSmallPage);
      std::transform(from, from + static_cast<long>(extent->page_count * kSmallPage),
                     std::back_inserter(data), [](uint8_t byte) { return ~byte; });
    }
    group.checksum = reap::crc32c(data.data() + group.data_offset, group.data_bytes);
  }
  write_data(restore, set, data);
  return set;
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
  reap::Measurements& measurements() override { return restore_.measured; }
  const std::atomic<bool>& stopping() override { return stopping_; }
  void begin_installs() override {}
  void poll_faults(reap::ServeBuffers&) override {}
  void end_installs() override {}
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
  // The failure explains an outcome other than Filled::all.
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
