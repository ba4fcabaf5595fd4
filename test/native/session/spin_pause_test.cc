#include "session/spin_pause.h"

#include "support/check.h"

using reap::SpinPause;

namespace {

SpinPause::Clock::time_point at(std::chrono::milliseconds time) {
  return SpinPause::Clock::time_point(time);
}

}  // namespace

TEST(a_thread_does_not_poll_for_a_while_after_one_lost_its_core) {
  SpinPause pause;
  CHECK(pause.is_over(at(SpinPause::kMin)));
  pause.lost_core(at(SpinPause::kMin));
  CHECK(!pause.is_over(at(2 * SpinPause::kMin) - std::chrono::nanoseconds(1)));
  CHECK(pause.is_over(at(2 * SpinPause::kMin)));
}

TEST(polling_pauses_longer_with_each_core_that_is_lost_up_to_a_limit) {
  SpinPause pause;
  for (int i = 0; i < 3; ++i) pause.lost_core(at({}));
  CHECK(!pause.is_over(at(4 * SpinPause::kMin) - std::chrono::nanoseconds(1)));
  CHECK(pause.is_over(at(4 * SpinPause::kMin)));
  for (int i = 0; i < 100; ++i) pause.lost_core(at({}));
  CHECK(!pause.is_over(at(SpinPause::kMax) - std::chrono::nanoseconds(1)));
  CHECK(pause.is_over(at(SpinPause::kMax)));
}

TEST(polling_pauses_as_shortly_as_at_first_once_cores_are_kept_again) {
  SpinPause pause;
  for (int i = 0; i < 100; ++i) pause.lost_core(at({}));
  for (int i = 0; i < 7; ++i) pause.kept_core();
  pause.lost_core(at({}));
  CHECK(!pause.is_over(at(SpinPause::kMin) - std::chrono::nanoseconds(1)));
  CHECK(pause.is_over(at(SpinPause::kMin)));
}
