import type { ReapTraceError } from '../errors.js'
import type { WarningEvent } from '../events.js'
import type { Snapshot } from '../snapshot/snapshot.js'
import type { VerifyResult } from '../working-set/comparison.js'
import type { ProofKind } from '../working-set/open.js'
import type { Trace, WorkingSet } from '../working-set/working-set.js'
import type { FaultClass, FaultWaits, SessionTimes, SlowFault, Timeline } from './timing.js'

/** Options of `serve()`. */
export interface ServeOptions {
  /**
   * Path of the socket that `serve()` binds, mode 0600, and that the VMM connects to. At most 107
   * bytes. One socket serves one restore.
   */
  readonly socketPath: string
  /** The snapshot that the VM is restored from. */
  readonly snapshot: Snapshot
  /**
   * Pages to install before the guest touches them: a working set, or the path of its file, which
   * is read and checked first. The bytes of a set without a file come from the memory file, which
   * is slower.
   */
  readonly workingSet?: WorkingSet | string | undefined
  /**
   * Pages of the working set that are left out of the prefetch, so that a fault shows whether the
   * guest needs them: page numbers as in `Trace.pages`, in any order. Those outside the set are
   * ignored. Such a page is also not installed ahead of faults, and a fault on it counts as
   * residual. Without effect on the page cache, where no fault is seen.
   * @default none
   */
  readonly heldOutPages?: Uint32Array | undefined
  /**
   * Whether to record the pages that the guest touches, for `stopRecording()`: each page at its
   * first fault, unless the guest has given it back before. With a working set these are the late,
   * the residual and the held-out ones: the kernel reports no touch of a page that is already
   * installed. Until `stopRecording()`, no page is installed ahead of faults (`installedAhead`),
   * which would hide its touch.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * Whether to keep every fetch, install and fault of the session, for `timeline()`. Takes 3.5 MiB.
   * @default false
   */
  readonly timeline?: boolean | undefined
  /**
   * Whether to use a working-set file that belongs to another user than this one and root, or that
   * its group or others may write to. Such a file is otherwise refused as a bad working set
   * (`ERR_UNTRUSTED_FILE`): its checksums protect from damage, not from an author. Whoever may
   * write to it decides which pages are prefetched and, where the snapshot's `id` is the proof,
   * their bytes.
   * @default false
   */
  readonly trustWorkingSet?: boolean | undefined
  /**
   * What to do with a working set that is damaged, belongs to a memory file of another size, or is
   * in a file that is not trusted: restore on demand and report a `warning`, or reject. A missing
   * file causes no warning.
   * @default 'on-demand'
   */
  readonly onBadWorkingSet?: 'on-demand' | 'fail' | undefined
  /**
   * What to do with a stale working set, whose pages differ from the memory file. The guest never
   * gets stale bytes: without a proof on this host that both files hold the same bytes, the set
   * provides only pages and their order, and the bytes come from the memory file. This is always so
   * for a guest with 2 MiB pages, whose set is not compared.
   * - `'warn'`: report a `warning`; `compared` has the number of pages, except for a set that is
   *   already known to be stale.
   * - `'rewrite'`: report a `warning` and rewrite the working-set file from the memory file after
   *   the prefetch. The new file has the snapshot's `id`, or none.
   * - `'fail'`: reject. A set without a proof is compared before the socket listens; the result is
   *   remembered if possible.
   * @default 'fail' with onBadWorkingSet: 'fail', else 'warn'
   */
  readonly onStaleWorkingSet?: 'warn' | 'rewrite' | 'fail' | undefined
  /**
   * Maximum time to wait for a VMM to connect, in milliseconds; 0 waits indefinitely.
   * @default 10_000
   */
  readonly connectTimeoutMs?: number | undefined
  /**
   * Time after which a read of the memory file or of the working set counts as hung, in
   * milliseconds; 0 sets no limit. It is reported by a `warning` event whose error, with the `check`
   * `hangs`, names the file; the guest waits on.
   * @default 30_000
   */
  readonly readTimeoutMs?: number | undefined
  /**
   * Whether a read of the memory file that takes longer than `readTimeoutMs` only warns, or ends
   * the session with that error; the VM is then killed, or left with `vm: 'leave'`.
   * @default 'warn'
   */
  readonly onReadTimeout?: 'warn' | 'fail' | undefined
  /**
   * The VMM that will connect: its pid, or an object with a `pid`, such as a `ChildProcess`. If it
   * exits without a handshake, the session ends at once with `ERR_VMM_EXITED`; if it did not start,
   * `serve()` rejects with this error.
   * @default unknown: the session waits for `connectTimeoutMs`
   */
  readonly vmm?: number | { readonly pid?: number | undefined } | undefined
  /**
   * What to do with a VM whose faults can no longer be served, because of a failure or because this
   * process ends. A VM that is left freezes at its next fault.
   * @default 'kill'
   */
  readonly vm?: 'kill' | 'leave' | undefined
  /**
   * Additional uid that the VMM may run as (under a jailer). The socket is given to it, which
   * requires root. By default only this process's uid and root may connect.
   */
  readonly peerUid?: number | undefined
  /**
   * Limits the start: an abort before `prefetched` settles ends the session as `signal` does, a
   * later one has no effect. For example `AbortSignal.timeout(4000)`.
   */
  readonly startSignal?: AbortSignal | undefined
  /**
   * Ends the session at any time, and handles the VM as `vm` says; pending promises reject with its
   * reason.
   */
  readonly signal?: AbortSignal | undefined
  /**
   * Called for each step of the session, never for a fault. Events are plain JSON. An exception
   * becomes a process warning and does not affect the session.
   */
  readonly onEvent?: ((event: ServeEvent) => void) | undefined
}

/** One mapping of guest memory in the VMM. */
export interface GuestRegion {
  /** Address in the VMM's address space, below 2^52. */
  readonly baseAddress: number
  /** Size in bytes. */
  readonly size: number
  /** Offset of its first byte in the memory file. */
  readonly offset: number
}

/** Content of the handshake. */
export interface GuestInfo {
  /** Process id of the VMM, from the kernel; 0 if it is in another pid namespace. */
  readonly pid: number
  /** Page size in bytes: 4096, or 2097152 for a guest on huge pages. */
  readonly pageSize: number
  readonly memoryBytes: number
  /** Mappings, sorted by offset in the memory file. */
  readonly regions: readonly GuestRegion[]
}

/** Work of the threads that prefetch, so far. */
export interface PrefetchWork {
  /** Time during which at least one thread was reading pages; others install at the same time. */
  readonly fetchMs: number
  /** Time during which at least one thread waited for the disk: a part of `fetchMs`. */
  readonly diskMs: number
  /** Number of bytes of the reads that waited for the disk; the others were in the page cache. */
  readonly diskBytes: number
  /** Time spent installing, summed over the workers. */
  readonly installMs: number
  /**
   * CPU time of the installs, estimated from every eighth. For the rest of `installMs` the workers
   * waited for a core or a lock.
   */
  readonly installCpuMs: number
}

/** Result of a prefetch. */
export interface PrefetchResult extends PrefetchWork {
  /** Number of 4 KiB pages installed before the guest touched them, zero pages included. */
  readonly pageCount: number
  /** Number of contiguous runs of the working set, after cutting into groups. */
  readonly extentCount: number
  /** Number of bytes read. */
  readonly bytes: number
  /** Time from the handshake to the last page. */
  readonly sinceConnectMs: number
  /**
   * Source of the bytes at the end of the prefetch: the working-set file if it is proven to hold
   * the memory file's bytes, which is faster with a cold page cache. `undefined` without a working
   * set.
   */
  readonly source: 'working-set' | 'memory-file' | undefined
  /**
   * Kind of proof: the set was written from this memory file, or compared with it on this host, and
   * neither file has changed since; or both have the same snapshot id. `undefined` without a proof.
   */
  readonly provenBy: ProofKind | undefined
  /**
   * Whether the prefetch completed. If not, a `warning` says why, and the guest is served on
   * demand.
   */
  readonly complete: boolean
}

/** Figures of one session. Counts of pages are in 4 KiB whatever the guest uses. */
export interface FaultStats {
  /** Number of faults that the guest waited for. */
  readonly faults: number
  /** Number of these on working-set pages that the prefetch had not installed yet. */
  readonly lateFaults: number
  /** Number of these on pages outside the working set or held out; 0 without a working set. */
  readonly residualFaults: number
  /** Number of pages installed with data, by faults, ahead of faults and by the prefetch. */
  readonly installed: number
  /** Number of pages installed as zeros, without reading. */
  readonly zero: number
  /** Number of both kinds installed by the prefetch. */
  readonly prefetched: number
  /**
   * Number of both kinds installed ahead of a sequential run of faults, of a guest that touches its
   * memory in order or a VMM that writes a snapshot: after 16 sequential faults, as many pages as
   * the run has faults, at most 128 KiB per fault. 0 until `stopRecording()` in a session that
   * records, during a prefetch, and with 2 MiB pages.
   */
  readonly installedAhead: number
  /** Number of pages that were already present when installed. */
  readonly present: number
  /** Number of pages whose installation was deferred because the VMM was releasing memory. */
  readonly deferred: number
  /** Number of pages discarded because the memory was not registered or the VM had exited. */
  readonly discarded: number
  /** Number of pages released by the guest. */
  readonly removed: number
  /** Number of bytes read from the memory file and the working-set file. */
  readonly bytesRead: number
  /** Work of the prefetch, also while it runs, and if it is cut short. */
  readonly prefetch: PrefetchWork
  /**
   * Time during which at least one fault was read and not yet answered: the guest, or a part of it,
   * stood still. The time until a fault is read is not in it, nor are faults that the kernel serves.
   */
  readonly stalledMs: number
  /** Waits of the faults. With more than 1,024 faults at once, the others are not in it. */
  readonly waits: Readonly<Record<FaultClass, FaultWaits>>
  /** The faults that waited longest, at most 8, in descending order; also those that still wait. */
  readonly slowest: readonly SlowFault[]
}

/**
 * End of a session: `closed` before a VM connected, `vm-exited`, `vm-killed` or `vm-left` by
 * `close()`, or `detached` by `detach()`.
 */
export interface ServeResult {
  readonly state: 'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'
  /**
   * Present with `vm-exited` if the kernel's OOM killer has ended a process of the VMM's memory cgroup
   * meanwhile, as when the cgroup is full. Absent also if its counters cannot be read.
   */
  readonly oom?: true
  readonly stats: FaultStats
  /** Figures at the application's mark; absent without one. */
  readonly statsAtReady?: FaultStats
  readonly times: SessionTimes
}

/** Result of comparing an unproven working set with the memory file. */
export interface WorkingSetComparison extends VerifyResult {
  /** Whether the working-set file was rewritten (`onStaleWorkingSet: 'rewrite'`). */
  readonly rewritten: boolean
}

/**
 * Event passed to `onEvent`, in this order; a `warning` or `ready` can come at any time, and
 * `compared` after `closed`. `atMs` is its time in milliseconds of CLOCK_MONOTONIC, as in
 * {@link SessionTimes}: a JavaScript thread that is blocked gets the event later, and the time is
 * still right.
 */
export type ServeEvent = { readonly atMs: number } & (
  | { readonly type: 'listening'; readonly socketPath: string }
  | ({ readonly type: 'connected' } & GuestInfo)
  | ({ readonly type: 'prefetched' } & PrefetchResult)
  | WarningEvent
  | { readonly type: 'ready' }
  | ({ readonly type: 'compared' } & WorkingSetComparison)
  | ({ readonly type: 'closed'; readonly error?: ReapTraceError } & ServeResult)
)

/** Page-fault handler of one restored VM, created by `serve()`. */
export interface FaultHandler extends AsyncDisposable {
  readonly socketPath: string
  /**
   * Resolves with the handshake. Rejects with `ERR_HANDSHAKE_TIMEOUT`, `ERR_HANDSHAKE_INVALID`,
   * `ERR_VMM_EXITED`, `ERR_PEER_REFUSED`, or `ERR_CLOSED` if the session ends first.
   */
  readonly connected: Promise<GuestInfo>
  /**
   * Resolves at the end of the prefetch; without a working set, at the handshake. If the working
   * set turns out to be damaged, it resolves with `complete: false`, or rejects with
   * `onBadWorkingSet: 'fail'`; the guest is served either way.
   */
  readonly prefetched: Promise<PrefetchResult>
  /**
   * Resolves when every page of an unproven working set was compared with the memory file. This
   * starts after the prefetch, on a thread with idle priority, and continues if the session ends.
   * The result is remembered on this host. `undefined` if no comparison was needed, or if it
   * failed, which a `warning` reports. Never rejects; an abort of `signal` ends it.
   */
  readonly compared: Promise<WorkingSetComparison | undefined>
  /**
   * Resolves at the end of the session, when its threads, descriptors and socket are released,
   * except those of a comparison, which continues until `compared` settles. Rejects with the
   * failure that ended the session: `ERR_SOURCE_READ`, `ERR_FAULT_UNRESOLVED`, or an error of
   * `connected`.
   */
  readonly closed: Promise<ServeResult>
  /**
   * Returns the current counters, also after the end. While the VM runs, they may lag behind its
   * guest by the pages in flight; they are exact after `closed` or `detach()`, and those of the
   * prefetch after `prefetched`.
   */
  stats(): FaultStats
  /** Returns the times of the steps so far, also after the end. */
  times(): SessionTimes
  /**
   * Marks the time at which the application is ready: it has answered its first request. The figures
   * of this moment become `statsAtReady`. Only the first call counts, and none after the session's
   * end.
   *
   * @param atMs time of the mark in milliseconds of CLOCK_MONOTONIC, if it is known; now by default.
   * @throws TypeError if the session did not listen yet at that time, or if it is to come.
   */
  ready(atMs?: number): void
  /**
   * Returns what the session did so far, also after the end.
   *
   * @throws TypeError unless the session was opened with `timeline: true`.
   */
  timeline(): Timeline
  /**
   * Ends the recording and returns its pages in first-touch order; serving continues. Call it when
   * the function has answered: pages touched later are not part of its working set. A second call
   * returns the same pages.
   *
   * @throws TypeError if the session does not record.
   * @throws ReapTraceError `ERR_CLOSED` before `connected`.
   */
  stopRecording(): Trace
  /**
   * Installs every missing page and unregisters the memory from userfaultfd, so that the VM
   * continues without a handler. The VM then occupies its whole memory.
   *
   * @throws ReapTraceError
   * - `ERR_CLOSED`: no VM is served,
   * - `ERR_FAULT_UNRESOLVED`: the VM may not have more memory; serving continues,
   * - an error of `closed`, if the session fails meanwhile.
   */
  detach(): Promise<ServeResult>
  /**
   * Ends the session and resolves when it has ended. It never rejects: a failure of the session
   * rejects `closed`. A running VM is killed, since its next fault could not be served, or left to
   * freeze with `vm: 'leave'`. Idempotent.
   * @default { vm: 'kill' }
   */
  close(options?: { readonly vm?: 'kill' | 'leave' | undefined }): Promise<ServeResult>
}
