// `reap-guest kvm`: restores a VM and lets its vCPUs replay a trace; with --threads, a process
// without KVM whose threads replay it.
#pragma once

namespace reap::guest {

constexpr const char* kKvmUsage =
    "usage: reap-guest kvm --memory FILE --trace FILE [--socket PATH] [--vcpus N]\n"
    "           [--deal turns|chunks|all] [--spins N] [--page-size BYTES] [--pause EVENT,...]\n"
    "           [--verify] [--user-mode-only] [--threads]\n"
    "       reap-guest kvm --probe\n";

// `argv[0]` is the mode's name. Returns the exit code of the process; 2 for wrong usage.
int run_kvm(int argc, char** argv);

}  // namespace reap::guest
