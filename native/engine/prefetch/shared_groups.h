// The groups of a working set that several restores bring at the same time: each is read and
// checked once, into private memory. Not thread-safe.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "base/posix.h"
#include "working_set/plan.h"

namespace reap {

class SharedGroups {
 public:
  using Buffer = std::shared_ptr<Mapping>;
  using Clock = std::chrono::steady_clock;
  // How long a group that one restore reads is waited for by the others. After that each reads it
  // itself: the reader's disk may hang.
  static constexpr auto kMaxWait = std::chrono::seconds(1);
  enum class State { absent, being_read, there };

  // `working_set` is the state of the file that the groups are of.
  SharedGroups(const Plan& plan, const FileStamp& working_set)
      : working_set_(working_set), groups_(plan.groups), entries_(plan.groups.size()) {}

  // Whether a plan brings the same groups: by their checksums, too, as a file that is rewritten
  // within one tick of the kernel's clock may have the same stamps.
  bool are_of(const Plan& plan, const FileStamp& working_set) const {
    return working_set == working_set_ && plan.groups.size() == groups_.size() &&
           !groups_.empty() &&
           std::memcmp(plan.groups.data(), groups_.data(), groups_.size() * sizeof(PlanGroup)) == 0;
  }

  State state_of(uint64_t group, Clock::time_point now = Clock::now()) const {
    const Entry& entry = entries_[group];
    if (entry.data) return State::there;
    return now < entry.waited_for_until ? State::being_read : State::absent;
  }
  // Whether any group is there: a restore alone need not look.
  bool has_any() const { return count_ > 0; }
  // The data of a group that is there, which others may have as well.
  Buffer data_of(uint64_t group) const { return entries_[group].data; }

  // Around the reading of a group that is absent. Without data it is absent again.
  void begin(uint64_t group) { entries_[group].waited_for_until = Clock::now() + kMaxWait; }
  void end(uint64_t group, const Buffer& data) {
    entries_[group].waited_for_until = {};
    give(group, data);
  }

  // What was read for one restore before there was another.
  void give(uint64_t group, const Buffer& data) {
    if (entries_[group].data || !data) return;
    entries_[group].data = data;
    ++count_;
  }

  // Takes out a group that nobody holds; null when there is none. The first ones go first: a
  // restore that began earlier has had them.
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
  size_t count_ = 0;  // of those that have data
};

}  // namespace reap
