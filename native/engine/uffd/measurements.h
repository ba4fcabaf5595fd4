// Measurements of one restore. Shared with JavaScript, so they outlive the session.
#pragma once

#include "uffd/counters.h"
#include "uffd/prefetch_work.h"
#include "uffd/timing.h"

namespace reap {

struct Measurements {
  Counters counters;
  SessionSteps steps;
  Timeline timeline;
  FaultWaits waits{timeline};
  PrefetchWork prefetch;
  TraceRecorder trace;
};

}  // namespace reap
