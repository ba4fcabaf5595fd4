// Test hooks: places where a test can hold a thread, so that a race happens every time, or answer
// in place of the kernel. Empty in the product.
#pragma once

#ifdef REAP_TEST_HOOKS
#include <functional>

namespace reap::hooks {
inline std::function<void()> after_bind;        // a socket is bound and not yet looked at
inline std::function<void()> before_give_away;  // a socket was looked at and changes its owner next
inline std::function<void()> before_replace;    // a stale socket is about to be removed
inline std::function<void()> after_accept;      // a peer is accepted and not yet identified
inline std::function<void()> waits_for_folder;  // another handler replaces a stale socket there
inline std::function<void()> before_direct_open;  // the second open of a file that is already open
inline std::function<void()> before_lock;         // a lock file is open and is locked next
inline std::function<void()> after_release;       // an idle thread has returned its memory
inline std::function<void()> before_event;    // before an event or timer of a session is handled
inline std::function<void()> before_drain;    // before a read of the userfaultfd
inline std::function<void()> after_drain;     // its messages are read and not yet counted
inline std::function<void()> before_serve;    // a fault was read and is served next
inline std::function<void()> before_install;  // a page was read and is installed next
inline std::function<void()> before_prefetch_install;
inline std::function<void()>
    before_remove_pause;  // an install is about to wait for a REMOVE to complete
// Under the gate, after the checks that the page is missing and not removed, before the ioctl.
inline std::function<void()> before_ioctl;
// True if a read waits for the disk regardless of the page cache: eviction is only advisory.
inline std::function<bool()> is_cold;
// True if a file has changed within the current tick of the kernel's clock.
inline std::function<bool()> is_young;
// True if the turn of the thread that serves a VM is over.
inline std::function<bool()> turn_is_over;
// True if messages of a userfaultfd are not queued yet.
inline std::function<bool()> messages_are_late;
// True if a thread that yielded has lost its core to other work.
inline std::function<bool()> core_is_lost;
// True if the kernel makes no thread.
inline std::function<bool()> refuses_thread;
// True if every core is busy, however many this machine has.
inline std::function<bool()> cores_are_busy;
inline std::function<void()> before_page_cache_turn;  // before the prefetcher resumes a job
// True if the page cache of a file is hidden, as for a file that the process neither owns nor may
// write.
inline std::function<bool()> hides_residency;
// True if /proc is not mounted.
inline std::function<bool()> lacks_proc;
// True if this kernel lacks cachestat(2).
inline std::function<bool()> lacks_cachestat;
// True if the kernel drops readahead requests, as it may.
inline std::function<bool()> drops_readahead;
// True if pages in the page cache are all still being read.
inline std::function<bool()> reads_are_unfinished;
inline std::function<void()> after_look;  // after a scan of the page cache recorder
inline std::function<void()>
    before_page_tables;  // the file's mappings are known and page tables are opened next
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
