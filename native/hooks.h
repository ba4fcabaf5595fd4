// Places where a test can hold a thread, to make a race happen every time. Nothing in the product.
#pragma once

#ifdef REAP_TEST_HOOKS
#include <functional>

namespace reap::hooks {
inline std::function<void()> before_drain;    // about to read the userfaultfd
inline std::function<void()> before_serve;    // a fault was read and is about to be served
inline std::function<void()> before_install;  // a page is read and about to be installed
inline std::function<void()> before_prefetch_install;
// The gate is held, the page was seen to be missing and not removed, and the ioctl is next.
inline std::function<void()> before_ioctl;
}  // namespace reap::hooks

#define REAP_HOOK(name)                         \
  do {                                          \
    if (reap::hooks::name) reap::hooks::name(); \
  } while (false)
#else
#define REAP_HOOK(name) static_cast<void>(0)
#endif
