// The KVM guest's replay on threads of the VMM itself: the same touches, with user-mode faults.
#pragma once

#if defined(__x86_64__)

#include "kvm_replay.h"
#include "kvm_trace.h"

namespace reap::guest {

// Replays a share of the trace on the calling thread.
Error replay_on_thread(uint8_t* memory, const KvmTrace& trace, const ReplayShare& share,
                       uint64_t spins, const KvmReplay::GiveBack& give_back, ReplayResult* result);

}  // namespace reap::guest

#endif
