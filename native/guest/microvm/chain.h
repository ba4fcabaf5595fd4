// The pages that the guest walks: chains through memory whose every link is in the page itself, so
// that a page with other bytes than its own leads a walk astray.
#ifndef REAP_GUEST_MICROVM_CHAIN_H_
#define REAP_GUEST_MICROVM_CHAIN_H_

#include "machine.h"

namespace reap::microvm {

/** 10, 30 and 64 MiB of pages. All walks are along one chain, from its beginning. */
constexpr uint64_t kSmallPages = 2560;
constexpr uint64_t kMediumPages = 7680;
constexpr uint64_t kLargePages = 16384;
/** A second chain, for a request that asks for something else as well. */
constexpr uint64_t kOtherPages = 128;

/** Writes the chains into these spans, spread over all of them. Takes pages of the last one. */
void build_chains(Span* spans, size_t count);

/** Each walks, and returns whether it came to where it had to. */
bool walk_pages(uint64_t pages);
bool walk_other_pages();
/** Walks the medium pages, and counts up in each. */
bool write_pages();
/** Whether each of the medium pages has counted all that was written. */
bool check_written();
/** Walks the large pages, a part on each processor. */
bool walk_on_all(uint64_t processors);

/** Puts every link somewhere else in its page: a page of an earlier generation leads astray. */
void relink();

}  // namespace reap::microvm

#endif  // REAP_GUEST_MICROVM_CHAIN_H_
