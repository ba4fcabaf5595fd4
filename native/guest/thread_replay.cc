#include "thread_replay.h"

#if defined(__x86_64__)

#include <atomic>

namespace reap::guest {

namespace {

// Returns a wrong word that was found, or the expected one. See the guest's code in kvm_replay.cc.
uint64_t touch(uint64_t* place, const TraceEntry& entry) {
  uint64_t found = entry.word;
  if (!entry.has(TraceEntry::kWrite)) return __atomic_load_n(place, __ATOMIC_RELAXED);
  // In one access, so that the page's fault is a write fault.
  __atomic_compare_exchange_n(place, &found, ~entry.word, false, __ATOMIC_RELAXED,
                              __ATOMIC_RELAXED);
  // Another thread may have written the word already.
  return found == ~entry.word ? entry.word : found;
}

}  // namespace

Error replay_on_thread(uint8_t* memory, const KvmTrace& trace, const ReplayShare& share,
                       uint64_t spins, const KvmReplay::GiveBack& give_back, ReplayResult* result) {
  for (uint64_t i = 0; i < share.count; i++, result->replayed++) {
    const uint64_t index = share.first + i * share.stride;
    const TraceEntry& entry = trace.entries[index];
    if (entry.has(TraceEntry::kGiveBack)) {
      if (Error error = give_back(entry.offset(), entry.word)) return error;
    } else {
      auto* place = reinterpret_cast<uint64_t*>(memory + entry.offset());
      const uint64_t found = touch(place, entry);
      if (found != entry.word && result->wrong++ == 0) {
        result->first_wrong = index;
        result->found = found;
      }
    }
    for (uint64_t turn = spins; turn > 0; turn--)
      std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  return {};
}

}  // namespace reap::guest

#endif
