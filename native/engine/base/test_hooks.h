// Places where a test can hold a thread, to make a race happen every time, and one where it answers
// for the kernel. Nothing in the product.
#pragma once

#ifdef REAP_TEST_HOOKS
#include <functional>

namespace reap::hooks {
inline std::function<void()> before_direct_open;  // of a file that is open already
inline std::function<void()> before_event;        // about to handle an event or timer of a session
inline std::function<void()> before_drain;        // about to read the userfaultfd
inline std::function<void()> before_serve;        // a fault was read and is about to be served
inline std::function<void()> before_install;      // a page is read and about to be installed
inline std::function<void()> before_prefetch_install;
inline std::function<void()> before_remove_pause;  // an install waits for a REMOVE to be over
// The gate is held, the page was seen to be missing and not removed, and the ioctl is next.
inline std::function<void()> before_ioctl;
// Whether a read waits for the disk, whatever the page cache has: evicting is no more than a wish.
inline std::function<bool()> is_cold;
// Whether a file has changed within this tick of the kernel's clock.
inline std::function<bool()> is_young;
// Whether a thread that yielded has lost its core to other work.
inline std::function<bool()> core_is_lost;
// Whether every core is taken, however many this machine has.
inline std::function<bool()> cores_are_busy;
inline std::function<void()> before_page_cache_turn;  // a job of the prefetcher is about to go on
// Whether the page cache of a file is hidden, as of one that the process neither owns nor may
// write.
inline std::function<bool()> hides_residency;
// Whether this kernel lacks cachestat(2).
inline std::function<bool()> lacks_cachestat;
// Whether the kernel passes over a wish for pages, as it may.
inline std::function<bool()> ignores_wishes;
// Whether pages that are in the page cache are all still being read.
inline std::function<bool()> reads_are_unfinished;
inline std::function<void()> after_look;  // of the recorder of the page cache
inline std::function<void()>
    before_page_tables;  // it knows who maps the file, and looks there next
}  // namespace reap::hooks

#define REAP_HOOK(name)                         \
  do {                                          \
    if (reap::hooks::name) reap::hooks::name(); \
  } while (false)
#define REAP_HOOK_SAYS(name) (reap::hooks::name && reap::hooks::name())
#else
#define REAP_HOOK(name) static_cast<void>(0)
#define REAP_HOOK_SAYS(name) false
#endif
