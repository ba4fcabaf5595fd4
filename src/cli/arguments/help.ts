// What stands below the options in --help.

const servingHelp = `
The exit status is 0 when the session ended as asked, 1 for a failure and 2 for wrong usage.
--json prints one object per line on stdout, told apart by "type":`

const interposeHelp = `
--interpose is for a VMM that maps its memory file, as QEMU does, and has no Uffd backend: COMMAND
is started with LD_PRELOAD, and the first process in it that maps FILE, private and writable, has
that memory served. It stops with a message when that cannot be; REAP_TRACE_WHEN_UNREACHABLE=file
in the environment makes it go on with the plain file instead.`

const pageCacheHelp = `
--backend page-cache is for a VMM that maps its memory file (Firecracker's File backend, Cloud
Hypervisor, QEMU), on a host where snapshots mostly are in the page cache, or share it: the kernel
serves the faults, and nothing has to listen. It needs no --socket, and serves no VM: the options
about connections and the VM's end mean nothing there. COMMAND finds its backend in
REAP_TRACE_BACKEND_TYPE (File or Uffd) and REAP_TRACE_BACKEND_PATH with every backend, as they stand
in Firecracker's mem_backend.`

export const recordHelp = `${servingHelp} listening, connected,
recorded, warning, closed; with --backend page-cache: recording, recorded.

What ends the recording:
  with COMMAND     its end, --for or Ctrl-C, whichever comes first. If it fails, nothing is written,
                   the session ends, and the exit status is 1. It finds the socket in
                   REAP_TRACE_SOCKET and the memory file in REAP_TRACE_MEMORY.
  without COMMAND  --for, Ctrl-C or the VM's exit, whichever comes first

The file is then written, and the VM is served until it exits. From there on, Ctrl-C detaches: the
rest of the memory is installed, and the VM and COMMAND live on without us; one more ends us and
kills the VM. SIGTERM ends at once and kills the VM, since its next fault would freeze it (see
--leave-vm).
${interposeHelp}
${pageCacheHelp}

It evicts the files and records what comes back, so no other VM may map them then. The kernel reads
around each fault, so that the page cache has more than the guest touched: where the VMM still runs
at the end, and its /proc/PID/pagemap may be read, only what it mapped is recorded. Of disk images
(--disk) the kernel's readahead is in the record. --for counts from the start; at its end, and at
Ctrl-C, the file is written and COMMAND ended. SIGTERM writes nothing.

Examples:
  A script that loads the snapshot and calls the function once:
    $ reap-trace record --memory vm.mem --socket /run/vm.sock --output vm.ws -- ./invoke-once.sh

  By hand: start this, load the snapshot with the socket as its Uffd backend, call the function,
  press Ctrl-C:
    $ reap-trace record --memory vm.mem --socket /run/vm.sock --output vm.ws

  The first two seconds of a Firecracker that a jailer runs as uid 1000:
    $ sudo reap-trace record --memory vm.mem --socket /srv/jail/root/uffd.sock --output vm.ws \\
        --peer-uid 1000 --for 2s

  The first five seconds of QEMU, which a script starts and tells to load its state:
    $ reap-trace record --memory vm.mem --socket vm.sock --output vm.ws --for 5s --interpose \\
        -- ./start-qemu.sh

  A VMM that maps its memory file, with what the function reads of its disk:
    $ reap-trace record --backend page-cache --memory vm.mem --disk rootfs.img --output vm.ws \\
        -- ./invoke-once.sh`

export const restoreHelp = `${servingHelp} listening, connected,
prefetched, warning, closed, compared; with --backend page-cache: prepared, prefetched, warning.
With auto, chosen comes first.

The working set is read while the VMM still starts, and installed from the moment it connects; any
other page is served when the guest asks. One socket is for one restore.

The guest gets the bytes of the memory file. They come from the working set where it is proven on
this host that both are the same: "record" has written the set from this memory file, or every page
was compared, and neither file changed since; or --snapshot-id has the name that the set was written
with. Otherwise the set gives pages and order, and every page is compared after the prefetch with
the lowest priority, which proves the next restore. A stale set is reported with the count of its
pages that differ, and with --on-stale-working-set rewrite written anew; with fail, the set is
compared before anything listens. At its end, restore waits for the comparison; Ctrl-C stops it.

COMMAND may load the snapshot; it finds the socket in REAP_TRACE_SOCKET and the memory file in
REAP_TRACE_MEMORY. If it fails, the session ends, and the exit status is 1.

Ctrl-C detaches: the rest of the memory is installed, and the VM and COMMAND live on without us; one
more ends us and kills the VM. SIGTERM ends at once and kills the VM, since its next fault would
freeze it (see --leave-vm).
${interposeHelp}
${pageCacheHelp}

It ends when all is in the page cache and COMMAND has ended. --backend auto chooses the
backend (see "reap-trace advise"). Disk images (--disk), in the order of the
record, are brought into the page cache with every backend.

Examples:
  $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws

  Refuse a working set that is damaged or stale, rather than go without its bytes:
    $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws \\
        --on-bad-working-set fail -- ./load-snapshot.sh

  Into the page cache, with a disk image; the script loads the snapshot with a File backend:
    $ reap-trace restore --backend page-cache --memory vm.mem --disk rootfs.img \\
        --working-set vm.ws -- ./load-snapshot.sh

  Whichever way is faster now; the script uses $REAP_TRACE_BACKEND_TYPE and …_PATH:
    $ reap-trace restore --backend auto --memory vm.mem --socket /run/vm.sock --disk rootfs.img \\
        --working-set vm.ws -- ./load-snapshot.sh`

export const adviseHelp = `
The answer is for a restore that begins now, with the page cache as it is. Where more than 5 % of
the working set is missing there, it is the fault handler. Otherwise it is whichever takes less
time for a page on this host. The first time, that is measured, which takes two seconds, and kept
in ~/.cache/reap-trace (REAP_TRACE_CALIBRATION names another file).

Examples:
  $ reap-trace advise vm.ws --memory vm.mem
  $ reap-trace advise vm.ws --memory vm.mem --json | jq -r .backend`

export const inspectHelp = `
The map is the guest's memory from left to right and top to bottom. A darker cell has more pages of
the working set in it. On a terminal the colour says when they are needed, early to late; elsewhere
a second map says it in digits, 0 to 9.

"proof" lists the memory files that this host wrote the set from or compared it with, and whether
each result still applies. Without a good one a restore takes the bytes from the memory file.

Examples:
  $ reap-trace inspect vm.ws
  $ reap-trace inspect vm.ws --json | jq .pages`

export const verifyHelp = `
Compares the bytes of every page, those of zeros too. The exit status is 1 when a page differs.
The result is remembered in ~/.cache/reap-trace/proofs (REAP_TRACE_PROOFS names another folder)
until one of the files changes: restores of an identical pair install the bytes of the working set.
Run it after both were copied to this host, and the first restore is as fast as the second.

Example:
  $ reap-trace verify vm.ws --memory vm.mem`

export const doctorHelp = `
A warning names something that some use needs; a failure is what keeps reap-trace itself from
working here, and makes the exit status 1.

Examples:
  $ reap-trace doctor
  $ reap-trace doctor --json | jq '.checks[] | select(.status != "ok")'`

export const demoHelp = `
Builds a snapshot of a small in-memory store, records the working set of one request, and then
restores it again and again in three ways, with a cold and a warm page cache:
  kernel-file   the memory file is mapped, and the kernel reads its pages
  on-demand     every page comes from the fault handler when the guest asks
  working-set   the recorded pages come before the guest asks
Needs no root, no VM and no network. Ctrl-C leaves nothing behind.

--firecracker does the same with a microVM (x64, KVM): a guest that comes with this program, and the
binary that is named, or the one in $PATH. Nothing is downloaded. kernel-file is its File backend,
and the guest checks every page that it asks for.

Examples:
  $ reap-trace demo
  $ reap-trace demo --firecracker ./firecracker
  $ reap-trace demo --memory-size 1G --rounds 9
  $ reap-trace demo --keep /var/tmp/reap && reap-trace inspect /var/tmp/reap/guest.ws`

export const programHelp = `
Start with:
  $ reap-trace doctor     what this machine has and what it lacks
  $ reap-trace demo       the whole story, without a VM

Then, with a snapshot of yours:
  $ reap-trace record  --memory vm.mem --socket /run/vm.sock --output vm.ws -- ./invoke-once.sh
  $ reap-trace inspect vm.ws
  $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws

Where the VMM maps its memory file instead, nothing has to listen (see "reap-trace record --help"):
  $ reap-trace record  --backend page-cache --memory vm.mem --output vm.ws -- ./invoke-once.sh
  $ reap-trace restore --backend page-cache --memory vm.mem --working-set vm.ws
  $ reap-trace advise  vm.ws --memory vm.mem     which backend a restore would use now

"reap-trace COMMAND --help" has the options and more examples.`
