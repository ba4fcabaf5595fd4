// Page chains that the guest walks. Each link is stored in the page itself, so a page with wrong
// bytes misdirects the walk.
#ifndef REAP_GUEST_MICROVM_CHAIN_H_
#define REAP_GUEST_MICROVM_CHAIN_H_

#include "machine.h"

namespace reap::microvm {

/** 10, 30 and 64 MiB of pages. All walks follow one chain, from its start. */
constexpr uint64_t kSmallPages = 2560;
constexpr uint64_t kMediumPages = 7680;
constexpr uint64_t kLargePages = 16384;
/** A second chain, for a request that also touches other pages. */
constexpr uint64_t kOtherPages = 128;

/**
 * Writes the chains into these spans, spread over all of them. Uses pages at the end of the last
 * one.
 */
void build_chains(Span* spans, size_t count);

/** Each function walks, and returns whether the walk ended at the right page. */
bool walk_pages(uint64_t pages);
bool walk_other_pages();
/** Walks the medium pages, and increments a counter in each. */
bool write_pages();
/** True if the counters of all medium pages match the number of writes. */
bool check_written();
/** Walks the large pages, one part per processor. */
bool walk_on_all(uint64_t processors);

/** Moves every link inside its page, so that a page of an earlier generation misdirects a walk. */
void relink();

}  // namespace reap::microvm

#endif  // REAP_GUEST_MICROVM_CHAIN_H_
