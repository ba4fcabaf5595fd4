#include "session/read_limit.h"

#include <algorithm>

namespace reap {

void ReadLimit::Reads::begin() {
  if (limit_.limit_.count() == 0) return;
  const std::lock_guard<std::mutex> lock(limit_.mutex_);
  if (!has_begun_) wait_ = limit_.waits_.emplace(limit_.waits_.end());
  has_begun_ = true;
  *wait_ = {Clock::now()};
  if (limit_.has_timer_) return;
  limit_.has_timer_ = true;
  limit_.reactor_.after(limit_.limit_, limit_.session_, Reactor::Role::read_deadline);
}

ReadLimit::Reads::~Reads() {
  if (!has_begun_) return;
  const std::lock_guard<std::mutex> lock(limit_.mutex_);
  limit_.waits_.erase(wait_);
}

bool ReadLimit::is_exceeded() {
  const std::lock_guard<std::mutex> lock(mutex_);
  has_timer_ = false;
  const auto now = Clock::now();
  bool exceeded = false;
  auto next = Clock::time_point::max();
  for (Wait& wait : waits_) {
    if (wait.is_hung) continue;
    wait.is_hung = now - wait.since >= limit_;
    exceeded = exceeded || wait.is_hung;
    if (!wait.is_hung) next = std::min(next, wait.since + limit_);
  }
  if (next != Clock::time_point::max()) {
    has_timer_ = true;
    reactor_.after(next - now, session_, Reactor::Role::read_deadline);
  }
  return exceeded;
}

}  // namespace reap
