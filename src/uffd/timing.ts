/**
 * Times of the steps of a session, taken by native threads, in milliseconds of CLOCK_MONOTONIC: the
 * clock of `process.hrtime()`, the same in all processes of a host. A step that has not happened is
 * `undefined`.
 */
export interface SessionTimes {
  /** Time at which the socket began to listen. */
  readonly listening: number
  /** Time at which the VMM connected. */
  readonly accepted?: number | undefined
  /** Time at which the handshake was complete: from here on faults are served. */
  readonly connected?: number | undefined
  /** Start of the first read of the prefetch, often before the VMM connects. */
  readonly firstFetch?: number | undefined
  /** Time at which the first page of the prefetch was installed. */
  readonly firstInstall?: number | undefined
  /** Time at which the first fault was read. */
  readonly firstFault?: number | undefined
  /** End of the prefetch. */
  readonly prefetched?: number | undefined
  /** Time of the application's mark; see `ready()`. */
  readonly ready?: number | undefined
  /** Time at which the VM exited, or the session was closed or failed. */
  readonly closed?: number | undefined
}

/**
 * Class of a fault: on a page that the prefetch had yet to install, on a page that it does not
 * install, or any fault of a session without a prefetch.
 */
export type FaultClass = 'on-demand' | 'late' | 'residual'

/** Distribution of the times from the read of a fault's message to the wake of its thread. */
export interface FaultWaits {
  /** Number of faults that were answered. */
  readonly count: number
  /** Sum of their waits, in microseconds. Waits of several threads overlap; see `stalledMs`. */
  readonly totalUs: number
  readonly maxUs: number
  /**
   * Numbers of faults whose wait is below `belowUs` microseconds and not below the previous limit, in
   * ascending order. The limits are 1.024, 1.536, 2.048, 3.072, 4.096 … (powers of two with linear
   * halves); the last one, of 68.7 s, includes longer waits. Empty buckets are left out.
   */
  readonly buckets: readonly (readonly [belowUs: number, count: number])[]
}

/** A fault that waited long. */
export interface SlowFault {
  /** Offset of its page in the memory file, in bytes. */
  readonly offset: number
  readonly class: FaultClass
  readonly waitUs: number
}

/** A read of the prefetch. Times as in `SessionTimes`. */
export interface FetchSpan {
  readonly from: number
  readonly to: number
  readonly bytes: number
  /** Whether the read waited for the disk. */
  readonly waited: boolean
  /** Number of the prefetch thread. */
  readonly thread: number
}

/** Installs of the pages of one read. */
export interface InstallSpan {
  readonly from: number
  readonly to: number
  /** Number of bytes of these pages, with those that the guest had already. */
  readonly bytes: number
  readonly thread: number
}

/** A fault, from the read of its message to the wake of its thread. */
export interface FaultSpan {
  readonly from: number
  readonly to: number
  readonly class: FaultClass
  /** Offset of its page in the memory file, in bytes. */
  readonly offset: number
}

/** Memory that the guest has given back. */
export interface RemovalMark {
  readonly at: number
  readonly offset: number
  readonly bytes: number
}

/** Spans and marks of a session with `timeline: true`, in the order of their ends. */
export interface Timeline {
  readonly fetches: readonly FetchSpan[]
  readonly installs: readonly InstallSpan[]
  readonly faults: readonly FaultSpan[]
  readonly removals: readonly RemovalMark[]
  /** Number of later spans and marks that are missing: 65,536 are kept. */
  readonly missing: number
}
