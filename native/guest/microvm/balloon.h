// The driver of a virtio balloon: gives pages to the VMM and takes them back, as many as the VMM
// asks for. What was given reads as zeros from then on.
#ifndef REAP_GUEST_MICROVM_BALLOON_H_
#define REAP_GUEST_MICROVM_BALLOON_H_

#include "machine.h"

namespace reap::microvm {

/** The pages of the balloon: 8 MiB below those of the chains. */
constexpr Span kBalloonPages{0x1800000, 2048};

/** Fills the pages, and finds the device that the command line names, if there is one. */
void set_up_balloon(const char* command_line);

/** Inflates or deflates to what the device asks for, up to all of the pages. False: no device. */
bool follow_balloon();
/** How many pages the VMM has now. */
uint64_t balloon_size();

/** Reads all of the pages. True: zeros where they were given away once, and the rest unchanged. */
bool check_balloon_pages(uint64_t* zeros);

}  // namespace reap::microvm

#endif  // REAP_GUEST_MICROVM_BALLOON_H_
