// Text below the options in --help.

const servingHelp = `
The exit status is 0 on success, 1 for a failure and 2 for wrong usage.
--json prints one object per line on stdout, each with its time, as "time" (ISO 8601, UTC) and as
"atMs" (milliseconds of CLOCK_MONOTONIC), and "formatVersion": 1. A failure is an object with the
type "error". The other types are`

const interposeHelp = `
--interpose is for a VMM without a Uffd backend that maps its memory file, as QEMU does: COMMAND is
started with LD_PRELOAD, and the memory of the first process that maps the memory file, private and
writable, is served. If it cannot be, the process prints why and exits, or, with
REAP_TRACE_WHEN_UNREACHABLE=file in the environment, continues with the plain file.`

const readyMarkHelp = `
COMMAND can mark the moment at which its guest is ready, such as that of the first response: by
"reap-trace ready", or a line into the FIFO whose path is in REAP_TRACE_READY. The event "ready" has
its time.`

const limitsHelp = `
By default, no wait has a limit: --connect-timeout limits the wait for a VMM, and --command-timeout
the run of COMMAND, which then counts as failed, for a guest that never answers.`

const endHelp = `
Ctrl-C detaches: the rest of the memory is installed, and the VM and COMMAND continue without
reap-trace; a second Ctrl-C ends reap-trace and kills the VM. SIGTERM ends the session at once and
kills the VM, since its next fault would freeze it (see --leave-vm).`

const pageCacheHelp = `
--backend page-cache is for a VMM that maps its memory file (Firecracker's File backend, Cloud
Hypervisor, QEMU), on a host whose page cache holds most snapshots or is shared by many VMs. The
kernel serves the faults, so there is no handler and no --socket; options for connections, for reads
that hang and for the end of the VM have no effect. With every backend, COMMAND finds the values for
Firecracker's mem_backend in REAP_TRACE_BACKEND_TYPE (File or Uffd) and REAP_TRACE_BACKEND_PATH.`

export const recordHelp = `${servingHelp}
listening, connected, ready, recorded, warning and closed; with --backend page-cache: recording,
ready, recorded and warning. --store adds planned, learned and drift.

The recording ends
  with COMMAND     at its exit, --for or Ctrl-C. If COMMAND fails, nothing is written, the session
                   ends, and the exit status is 1. COMMAND finds the socket in REAP_TRACE_SOCKET and
                   the memory file in REAP_TRACE_MEMORY.
  without COMMAND  at --for, Ctrl-C or the VM's exit

A VM that did not run is no recording: if the guest touched hardly a page (fewer than 64 of a guest
of 64 MiB or more), an older file stays, and the exit status is 1.

After the recording, the file is written and the VM served until it exits. From then on,${endHelp}
${limitsHelp}
${readyMarkHelp}
${interposeHelp}
${pageCacheHelp}

Such a recording evicts the files and records the pages that return, so no other VM may map them
meanwhile. The kernel reads around each fault, so the page cache receives more than the guest
touches: if the VMM still runs at the end and its /proc/PID/pagemap is readable, only the pages that
it mapped are recorded. The record of a disk image (--disk) includes read-ahead. --for counts from
the start; when it expires, and at Ctrl-C, the file is written and COMMAND is stopped. After SIGTERM
nothing is written.

With --store, the VM is restored on demand, and the store learns from this run as from any other:
its pages are added to the evidence of earlier ones. If COMMAND makes a ready mark, later pages do
not count. "restore --store" records where the store has no set, so this is for one more run in
which every touch is seen.

Examples:
  A script that loads the snapshot and calls the function once:
    $ reap-trace record --memory vm.mem --socket /run/vm.sock --output vm.ws -- ./invoke-once.sh

  By hand: start this, load the snapshot with the socket as its Uffd backend, call the function, and
  press Ctrl-C:
    $ reap-trace record --memory vm.mem --socket /run/vm.sock --output vm.ws

  The first two seconds of a Firecracker under a jailer, as uid 1000:
    $ sudo reap-trace record --memory vm.mem --socket /srv/jail/root/uffd.sock --output vm.ws \\
        --peer-uid 1000 --for 2s

  The first five seconds of QEMU, started and restored by a script:
    $ reap-trace record --memory vm.mem --socket vm.sock --output vm.ws --for 5s --interpose \\
        -- ./start-qemu.sh

  One more run for the store:
    $ reap-trace record --memory vm.mem --socket /run/vm.sock --store /var/lib/reap-trace \\
        -- ./invoke-once.sh

  A VMM that maps its memory file, with the function's reads of its disk:
    $ reap-trace record --backend page-cache --memory vm.mem --disk rootfs.img --output vm.ws \\
        -- ./invoke-once.sh`

export const restoreHelp = `${servingHelp}
listening, connected, prefetched, ready, warning, closed and compared; with --backend page-cache:
restoring, prefetched, ready, warning and closed. --backend auto adds planned, --trace traced, and
--store planned, learned and drift.

The working set is read while the VMM starts, and installed as soon as it connects; other pages are
served on demand. A socket serves one restore.

The guest always gets the bytes of the memory file. They are read from the working set if it is
proven on this host that both are the same: "record" wrote the set from this memory file, or every
page was compared, and neither file has changed since; or the set was written with the same
--snapshot-id. Otherwise the set only provides pages and their order, and every page is compared
after the prefetch with idle priority, as a proof for the next restore. A stale set is reported with
the number of pages that differ; with --on-stale-working-set rewrite it is also rewritten, and with
fail it is compared before the socket listens. At the end, restore waits for the comparison; Ctrl-C
stops it.

With --store, the set is the one that the store has made of earlier restores, and the store learns
from this one too: which pages were missing, and which were prefetched in vain. For the latter a few
pages of the set are held out. The first restore of a snapshot prefetches nothing and records. Pages
count until the ready mark (see below), or without one until the end of COMMAND or of the VM. A run
whose COMMAND fails before its mark teaches nothing. A restore from the page cache teaches no pages,
only its time. --variant names the class of the request: classes that differ get separate sets.
--parent names the snapshot that this one was made from, whose pages it starts with; for one that
was made again at the same path it need not be given. At the end, restore waits until everything is
saved; Ctrl-C ends that too. "reap-trace store" looks into a store.

COMMAND may load the snapshot; it finds the socket in REAP_TRACE_SOCKET and the memory file in
REAP_TRACE_MEMORY. If COMMAND fails, the session ends, and the exit status is 1. It is also 1 if the
VM exits before it touches a page of its memory, because its snapshot was not loaded.
${endHelp}
${limitsHelp}
${readyMarkHelp}
${interposeHelp}
${pageCacheHelp}

Such a restore ends when the working set is in the page cache and COMMAND has exited. --backend auto
chooses the backend (see "reap-trace advise"). Disk images (--disk), in the order of the recording,
are prefetched into the page cache with every backend.

Examples:
  $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws

  Learn from each restore, in a store; the script calls "reap-trace ready" when it has its answer:
    $ reap-trace restore --memory vm.mem --socket /run/vm.sock --store /var/lib/reap-trace \\
        --variant 'POST /resize' -- ./invoke-once.sh

  Fail with a damaged or stale working set, instead of restoring without its bytes:
    $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws \\
        --on-bad-working-set fail -- ./load-snapshot.sh

  Prefetch into the page cache, with a disk image; the script uses a File backend:
    $ reap-trace restore --backend page-cache --memory vm.mem --disk rootfs.img \\
        --working-set vm.ws -- ./load-snapshot.sh

  Use the faster backend; the script uses $REAP_TRACE_BACKEND_TYPE and …_PATH:
    $ reap-trace restore --backend auto --memory vm.mem --socket /run/vm.sock --disk rootfs.img \\
        --working-set vm.ws -- ./load-snapshot.sh`

export const compareHelp = `
The arms:
  kernel-file   the memory file is mapped, and the kernel reads its pages; nothing is prefetched
  on-demand     a fault handler installs each page when the guest touches it
  page-cache    the working set is prefetched into the page cache; the memory file is mapped
  working-set   a fault handler installs the working set
  auto          page-cache or working-set, as "reap-trace advise" says

COMMAND restores the VM, invokes its function and ends the VM. It finds the backend in
REAP_TRACE_BACKEND_TYPE (File or Uffd) and REAP_TRACE_BACKEND_PATH, as with "restore". The time
runs from the restore request, before reap-trace opens the snapshot, to the ready mark of COMMAND
("reap-trace ready", or a line into the FIFO $REAP_TRACE_READY), or to its end without one.
After its mark, COMMAND has 10 seconds to end. What it leaves running in its process group is
killed, as is the VM of a fault handler.

Each arm has a trial first, which is not measured: an arm whose COMMAND fails in it is left out.
Then, with a warm page cache and with a cold one, every round restores once by each arm, in an order
drawn from the seed. Cold means that no page of the files is in the page cache, warm that all are;
both are checked before each restore. Ctrl-C ends the comparison, and prints the results so far.

"÷ kernel-file" is the time divided by that of kernel-file in the same round. "residual" counts the
faults on pages outside the working set, and "stalled" is the time with at least one fault
unanswered. The exit status is 1 if nothing could be measured.

Examples:
  $ reap-trace compare --memory vm.mem --working-set vm.ws --report compare.html \\
      -- ./restore-and-invoke.sh
  $ reap-trace compare --memory vm.mem --working-set vm.ws --cold --rounds 20 \\
      --arms kernel-file,working-set --export-csv runs.csv -- ./restore-and-invoke.sh`

export const adviseHelp = `
The answer is for a restore that starts now, with the current page cache. If more than 5 % of the
working set is missing from it, the answer is the fault handler (uffd), otherwise the backend with
the lower cost per page on this host. The first call measures these costs, which takes about two
seconds, and saves them in ~/.cache/reap-trace (or in the file REAP_TRACE_CALIBRATION).

Examples:
  $ reap-trace advise vm.ws --memory vm.mem
  $ reap-trace advise vm.ws --memory vm.mem --json | jq -r .backend`

export const inspectHelp = `
The map shows the guest's memory from left to right and top to bottom. A darker cell has more pages
of the working set. On a color terminal, colors show when they are needed, early to late; otherwise
a second map shows this as digits, 0 to 9. "growth" shows the number of pages touched so far, over
time.

"cached" shows the part of the pages' bytes in the page cache now: of this file, which a restore
reads if the set is proven, and, with --memory, of the memory file, which other restores read. The
number and the size of the remaining reads are exact. Their time is an estimate for the disk alone,
from a sample of at most about 100 ms that bypasses the page cache.

"proof" lists the memory files that the set was written from or compared with on this host, and
whether each result is still valid. Without a valid one, a restore reads the bytes from the memory
file.

Examples:
  $ reap-trace inspect vm.ws
  $ reap-trace inspect vm.ws --memory vm.mem
  $ reap-trace inspect vm.ws --json | jq .pageCount`

export const diffHelp = `
Shows the number of pages only in A, in both and only in B; the share of all these in both (Jaccard
index); and the same for the first half of each set in first-touch order.
The rank correlation (Spearman) tells whether the pages in both are touched in the same order. The
bytes of the pages are not compared; "zero pages" are those that were zero at the time of writing.
The exit status is 0 whether or not there is a difference, and 1 for a failure, such as files that
are not of one snapshot: guests of another memory or page size.

Examples:
  $ reap-trace diff monday.ws friday.ws
  $ reap-trace diff monday.ws friday.ws --first 20ms
  $ reap-trace diff monday.ws friday.ws --json | jq .all.jaccard`

export const mergeHelp = `
Keeps the pages that are in at least --min-sets of the files, each file with the same weight, in the
order of their median rank: by default the pages that every file has; with --min-sets 1 the pages
that any file has. The bytes of the pages are read from the memory file, which must be the one of
the recordings, and disk images are given as to "record". The output may be one of the files: it is
replaced once the new one is complete.

Examples:
  $ reap-trace merge 1.ws 2.ws 3.ws --min-sets 2 --memory vm.mem -o vm.ws
  $ reap-trace merge vm.trace --memory vm.mem -o vm.ws     a set of one trace file`

export const reportHelp = `
For a working set, the page shows the places of its pages in the guest's memory, their first-touch
order, their growth over time, and the lengths of their runs. For a restore, it shows the steps over
time with each fault, the waits of the faults, and their places, on the working set if that is given
too. For a comparison ("compare --json"), it shows the time, the stalled time and the residual
faults of each run, by arm. Two or more of a kind are compared side by side.

The page follows the color scheme of the browser, has the numbers of each picture in a table, and
needs no network.

Examples:
  $ reap-trace report vm.ws -o report.html
  $ reap-trace report restore.json vm.ws -o report.html
  $ reap-trace report monday.ws friday.ws -o difference.html
  $ reap-trace report comparison.json -o comparison.html`

export const verifyHelp = `
Compares the bytes of every page, zero pages included. The exit status is 1 if a page differs. The
result is saved in ~/.cache/reap-trace/proofs (or in the folder REAP_TRACE_PROOFS) and is valid
until one of the files changes: restores of an identical pair install the bytes of the working set.
After copying both files to a host, run this to make the first restore as fast as later ones.

Example:
  $ reap-trace verify vm.ws --memory vm.mem`

export const readyHelp = `
Writes a line into the FIFO $REAP_TRACE_READY with the time at which this program was started, so
that the start of Node does not count. Any other line is a mark too, with the time of its receipt. Only the first mark counts.

Examples, in a script that restores a VM and sends it a request:
  curl --fail --retry 100 http://172.16.0.2/ && reap-trace ready
  curl --fail --retry 100 http://172.16.0.2/ && echo >"$REAP_TRACE_READY"`

export const doctorHelp = `
A warning concerns a feature that you may not need. A failure keeps reap-trace from working on this
machine, and the exit status is 1.

Examples:
  $ reap-trace doctor
  $ reap-trace doctor --json | jq '.checks[] | select(.status != "ok")'`

export const demoHelp = `
Builds a snapshot of a small in-memory store, records the working set of one request, and restores
the snapshot repeatedly in three ways, with a cold and a warm page cache:
  kernel-file   the memory file is mapped, and the kernel reads its pages
  on-demand     the fault handler installs each page when the guest touches it
  working-set   the recorded pages are installed before the guest touches them
It needs no root, no VM and no network. Ctrl-C leaves nothing behind.

--firecracker does the same with a microVM (x64, KVM), using a guest shipped with this program and
the given binary, or the one in $PATH. Nothing is downloaded. kernel-file is its File backend, and
the guest checks every page that it touches.

Examples:
  $ reap-trace demo
  $ reap-trace demo --firecracker ./firecracker
  $ reap-trace demo --memory-size 1G --rounds 9
  $ reap-trace demo --keep /var/tmp/reap && reap-trace inspect /var/tmp/reap/guest.ws`

export const programHelp = `
Start with:
  $ reap-trace doctor     check this machine
  $ reap-trace demo       record and restore, without a VM

Then, with your snapshot:
  $ reap-trace record  --memory vm.mem --socket /run/vm.sock --output vm.ws -- ./invoke-once.sh
  $ reap-trace inspect vm.ws
  $ reap-trace restore --memory vm.mem --socket /run/vm.sock --working-set vm.ws

Or keep sets in a store, which records, and learns from every restore:
  $ reap-trace restore --memory vm.mem --socket /run/vm.sock --store DIR -- ./invoke-once.sh
  $ reap-trace store ls DIR

If the VMM maps its memory file, no handler is needed (see "reap-trace record --help"):
  $ reap-trace record  --backend page-cache --memory vm.mem --output vm.ws -- ./invoke-once.sh
  $ reap-trace restore --backend page-cache --memory vm.mem --working-set vm.ws
  $ reap-trace advise  vm.ws --memory vm.mem     which backend a restore would use now

How much faster is that?
  $ reap-trace compare --memory vm.mem --working-set vm.ws -- ./restore-and-invoke.sh

"reap-trace COMMAND --help" shows the options and more examples.`
