// Groups of a working set that several concurrent restores share: each is read and verified once,
// into private memory. Not thread-safe.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "prefetch/buffer_pool.h"
#include "working_set/plan.h"

namespace reap {

class SharedGroups {
 public:
  using Clock = std::chrono::steady_clock;
  // Time to wait for a group that another restore is reading. After that a restore reads it itself:
  // the other one's disk may hang.
  static constexpr auto kMaxWait = std::chrono::seconds(1);
  enum class State { absent, being_read, present };

  // `working_set` is the state of the file with these groups.
  SharedGroups(const Plan& plan, const FileStamp& working_set)
      : working_set_(working_set), groups_(plan.groups), entries_(plan.groups.size()) {}

  // True if a plan has the same groups. Compares their checksums, too: a file that is rewritten
  // within one tick of the kernel's clock may have the same stamps.
  bool are_of(const Plan& plan, const FileStamp& working_set) const {
    return working_set == working_set_ && plan.groups.size() == groups_.size() &&
           !groups_.empty() &&
           std::memcmp(plan.groups.data(), groups_.data(), groups_.size() * sizeof(PlanGroup)) == 0;
  }

  State state_of(uint64_t group, Clock::time_point now = Clock::now()) const {
    const Entry& entry = entries_[group];
    if (entry.data) return State::present;
    return now < entry.waited_for_until ? State::being_read : State::absent;
  }
  // True if any group has data: a lone restore skips the search.
  bool any_present() const { return count_ > 0; }
  // Data of a present group, which others may hold as well.
  Buffer data_of(uint64_t group) const { return entries_[group].data; }

  // begin() and end() bracket the read of an absent group. Without data it becomes absent again.
  void begin(uint64_t group) { entries_[group].waited_for_until = Clock::now() + kMaxWait; }
  void end(uint64_t group, const Buffer& data) {
    entries_[group].waited_for_until = {};
    give(group, data);
  }

  // Adds data that was read before a second restore joined.
  void give(uint64_t group, const Buffer& data) {
    if (entries_[group].data || !data) return;
    entries_[group].data = data;
    ++count_;
  }

  // Takes out a group that nobody holds; null if there is none. The first groups go first: restores
  // that began earlier have installed them.
  Buffer take_free() {
    const auto entry = std::find_if(entries_.begin(), entries_.end(), [](const Entry& one) {
      return one.data && one.data.use_count() == 1;
    });
    if (entry == entries_.end()) return nullptr;
    --count_;
    return std::exchange(entry->data, nullptr);
  }

 private:
  struct Entry {
    Buffer data;
    Clock::time_point waited_for_until{};
  };
  const FileStamp working_set_;
  const std::vector<PlanGroup> groups_;
  std::vector<Entry> entries_;
  size_t count_ = 0;  // groups that have data
};

}  // namespace reap
