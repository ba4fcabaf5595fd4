import type { ReapTraceError } from '../errors.js'
import type { WarningEvent } from '../events.js'
import type { Snapshot } from '../snapshot/snapshot.js'
import type { VerifyResult } from '../working-set/comparison.js'
import type { ProofKind } from '../working-set/open.js'
import type { Trace, WorkingSet } from '../working-set/working-set.js'

/** Options of `serve()`. */
export interface ServeOptions {
  /** Bound by us, with mode 0600; the VMM connects to it. One restore a socket. At most 107 bytes. */
  readonly socketPath: string
  /** What the VM is restored from. */
  readonly snapshot: Snapshot
  /**
   * Pages to bring before the guest asks for them. A path is read and checked first. A set that is
   * in no file has places but no bytes, which then come from the memory file: right, and slower.
   */
  readonly workingSet?: WorkingSet | string | undefined
  /**
   * Whether to record the pages that the guest asks for, for `stopRecording()`. Beside a working set
   * only the faults that it left are recorded.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * What to do when the working set is damaged, or of a memory file of another size: restore on
   * demand and report a `warning`, or reject. A file that does not exist yet is no warning.
   * @default 'on-demand'
   */
  readonly onBadWorkingSet?: 'on-demand' | 'fail' | undefined
  /**
   * What to do when pages of the working set are not those of the memory file. In no case does the
   * guest get them: where it is not proven on this host that the memory file holds the set's bytes, the
   * set gives pages and order, and the bytes come from the memory file. A guest on 2 MiB pages always
   * gets its bytes from there, and its set is not compared.
   * - `'warn'`: report a `warning`; `compared` has the count, and of a set that is known to be stale
   *   the warning alone.
   * - `'rewrite'`: report it, and write the working-set file anew from the memory file, after the
   *   prefetch. The new file has the snapshot's `id`, or none.
   * - `'fail'`: reject. A set without a proof is compared before the socket listens; the result is
   *   remembered where it can be.
   * @default 'fail' with onBadWorkingSet: 'fail', else 'warn'
   */
  readonly onStaleWorkingSet?: 'warn' | 'rewrite' | 'fail' | undefined
  /**
   * Milliseconds in which a VMM must have connected; 0 waits for ever.
   * @default 10_000
   */
  readonly connectTimeoutMs?: number | undefined
  /**
   * The VMM that will connect: its pid, or an object that has it, such as a `ChildProcess`. When it ends
   * without a handshake, the session ends at once with `ERR_VMM_EXITED`.
   * @default unknown; such a VMM is waited for until `connectTimeoutMs` is over
   */
  readonly vmm?: number | { readonly pid?: number | undefined } | undefined
  /**
   * What happens to a VM whose faults cannot be served any more, because of a failure or because
   * this process ends. A VM that is left freezes at its next fault.
   * @default 'kill'
   */
  readonly vm?: 'kill' | 'leave' | undefined
  /**
   * Another uid that the VMM may run as (a jailer's). The socket is given to it, which takes root.
   * Without it, only our own uid and root may connect.
   */
  readonly peerUid?: number | undefined
  /**
   * Bounds the start: an abort before `prefetched` settles ends the session as `signal` does, a later one
   * does nothing. `AbortSignal.timeout(4000)` fits here.
   */
  readonly startSignal?: AbortSignal | undefined
  /**
   * Ends the session whenever it aborts, and the VM with it, by `vm`; what is pending rejects with its
   * reason.
   */
  readonly signal?: AbortSignal | undefined
  /**
   * Called for each step of the session, never for a fault. Events are plain JSON. What it throws becomes a
   * warning of the process and harms no session.
   */
  readonly onEvent?: ((event: ServeEvent) => void) | undefined
}

/** One mapping of guest memory in the VMM. */
export interface GuestRegion {
  /** Where it is in the VMM's address space, which has 2^47 or 2^52 bytes. */
  readonly baseAddress: number
  /** Bytes. */
  readonly size: number
  /** Of its first byte in the memory file. */
  readonly offset: number
}

/** What the handshake said. */
export interface GuestInfo {
  /** The VMM's process, as the kernel names it to us. */
  readonly pid: number
  /** Bytes: 4096, or 2097152 for a guest on huge pages. */
  readonly pageSize: number
  readonly memoryBytes: number
  /** By offset in the memory file. */
  readonly regions: readonly GuestRegion[]
}

/** Result of a prefetch. */
export interface PrefetchResult {
  /** Number of 4 KiB pages installed before the guest asked, zero pages included. */
  readonly pageCount: number
  /** Number of contiguous runs that were installed. */
  readonly extentCount: number
  /** Bytes read for it. */
  readonly bytes: number
  /** Time in which pages were being read, by one thread or several; others install meanwhile. */
  readonly fetchMs: number
  /** Time spent installing, summed over the workers. */
  readonly installMs: number
  /** From the handshake to the last page. */
  readonly sinceConnectMs: number
  /**
   * Source of the bytes at the end of the prefetch: the working-set file where it is proven to hold the
   * memory file's, which is faster with a cold page cache. `undefined` without a working set.
   */
  readonly source: 'working-set' | 'memory-file' | undefined
  /**
   * The proof: the set was written from this memory file or compared with it on this host, and neither
   * changed since; or the caller named its snapshot. `undefined` without one.
   */
  readonly provenBy: ProofKind | undefined
  /** False when it was given up, which a `warning` explains. The guest is served on demand then. */
  readonly complete: boolean
}

/** Counters of one session. Pages are of 4 KiB, whatever the guest's are. */
export interface FaultStats {
  /** Faults that the guest has waited for. */
  readonly faults: number
  /** Of these, on pages of the working set that the prefetch had not brought yet. */
  readonly lateFaults: number
  /** Of these, on pages that the prefetch does not bring. 0 without a working set. */
  readonly residualFaults: number
  /** Pages installed with bytes, by faults, ahead of them and by prefetch. */
  readonly installed: number
  /** Pages installed as zeros, without reading. */
  readonly zero: number
  /** Of both, those installed before the guest asked. */
  readonly prefetched: number
  /**
   * Of both, those installed ahead of a run of faults, for a guest that touches its memory in order or a VMM that
   * writes a snapshot of it: after 16 faults in order, a page for each fault of the run, up to 128 KiB with each
   * one. None while touches are recorded, during a prefetch, or on 2 MiB pages.
   */
  readonly installedAhead: number
  /** Installs that found the page there. */
  readonly present: number
  /** Installs put off because the VMM was giving memory back. */
  readonly deferred: number
  /** Installs that found no registered memory, or no VM. */
  readonly discarded: number
  /** Pages that the guest gave back. */
  readonly removed: number
  /** Bytes read from the memory file and the working-set file. */
  readonly bytesRead: number
}

/**
 * How a session ended: `closed` before it served a VM, because the VM exited (`vm-exited`), by
 * `close()` (`vm-killed`, `vm-left`), or by `detach()`.
 */
export interface ServeResult {
  readonly state: 'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'
  readonly stats: FaultStats
}

/** Result of comparing a working set that was not proven with the memory file. */
export interface WorkingSetComparison extends VerifyResult {
  /** Whether the working-set file was written anew, with `onStaleWorkingSet: 'rewrite'`. */
  readonly rewritten: boolean
}

/**
 * Events passed to `onEvent`, in this order; a `warning` may come at any time, and `compared` after
 * `closed`.
 */
export type ServeEvent =
  | { readonly type: 'listening'; readonly socketPath: string }
  | ({ readonly type: 'connected' } & GuestInfo)
  | ({ readonly type: 'prefetched' } & PrefetchResult)
  | WarningEvent
  | ({ readonly type: 'compared' } & WorkingSetComparison)
  | ({ readonly type: 'closed'; readonly error?: ReapTraceError } & ServeResult)

/** Serves the page faults of one restored VM. Made by `serve()`. */
export interface FaultHandler extends AsyncDisposable {
  readonly socketPath: string
  /**
   * The handshake. Rejects with `ERR_HANDSHAKE_TIMEOUT`, `ERR_HANDSHAKE_INVALID`, `ERR_VMM_EXITED`,
   * `ERR_PEER_REFUSED`, or `ERR_CLOSED` when the session ends before it.
   */
  readonly connected: Promise<GuestInfo>
  /**
   * The end of the prefetch; without a working set, the handshake. A working set that turns out to
   * be damaged resolves with `complete: false`, or rejects with `onBadWorkingSet: 'fail'`; the
   * guest is served either way.
   */
  readonly prefetched: Promise<PrefetchResult>
  /**
   * The comparison of a working set that was not proven with the memory file, every page: after the
   * prefetch, on a thread that runs when nothing else wants the core, and also when the session ends
   * meanwhile. Its result is remembered on this host. `undefined` where none was needed, or where it
   * failed, which a `warning` reports. Never rejects; an abort of `signal` ends it.
   */
  readonly compared: Promise<WorkingSetComparison | undefined>
  /**
   * The end of the session, by when no thread, descriptor or socket of it is left but those of a
   * comparison, which goes on until `compared` settles. Rejects with the
   * failure that ended it: `ERR_SOURCE_READ`, `ERR_FAULT_UNRESOLVED`, or one of the handshake's.
   */
  readonly closed: Promise<ServeResult>
  /**
   * The counters as they are now, also after the end. While the VM lives they may trail what its
   * guest has seen by the pages in flight; they are exact after `closed` or `detach()`, and those
   * of the prefetch after `prefetched`.
   */
  stats(): FaultStats
  /**
   * Ends the recording and returns its pages in first-touch order; serving goes on. Call it when the
   * function has answered: what the guest touches later is not part of its working set. A second call
   * returns the same pages.
   *
   * @throws TypeError when the session does not record.
   * @throws ReapTraceError `ERR_CLOSED` before `connected`.
   */
  stopRecording(): Trace
  /**
   * Installs every page that is still missing, takes the memory out of userfaultfd, and lets the VM
   * live on without a handler. Costs the VM its whole memory. Rejects with `ERR_CLOSED` when there
   * is no VM, and with `ERR_FAULT_UNRESOLVED` when the VM may have no more memory: it is served on
   * then.
   */
  detach(): Promise<ServeResult>
  /**
   * Ends the session now and resolves when it has ended, whatever ended it: the failure of one that
   * failed before is `closed`'s. A VM that is alive is killed, since nobody could serve its next fault,
   * or left frozen with `vm: 'leave'`. May be called again.
   * @default { vm: 'kill' }
   */
  close(options?: { readonly vm?: 'kill' | 'leave' | undefined }): Promise<ServeResult>
}
