// Driver of a virtio balloon: gives as many pages to the VMM as it asks for, and takes them back.
// Pages that were given back read as zeros.
#ifndef REAP_GUEST_MICROVM_BALLOON_H_
#define REAP_GUEST_MICROVM_BALLOON_H_

#include "machine.h"

namespace reap::microvm {

/** The pages of the balloon: 8 MiB below those of the chains. */
constexpr Span kBalloonPages{0x1800000, 2048};

/** Fills the pages, and finds the device named on the command line, if there is one. */
void set_up_balloon(const char* command_line);

/**
 * Inflates or deflates to the size requested by the device, at most all pages. False: no device.
 */
bool follow_balloon();
/** Number of pages that the VMM has now. */
uint64_t balloon_size();

/** Reads all pages. True if pages that were ever given away are zero, and the others unchanged. */
bool check_balloon_pages(uint64_t* zeros);

}  // namespace reap::microvm

#endif  // REAP_GUEST_MICROVM_BALLOON_H_
