/** What one restore showed of the pages of its snapshot. Page numbers as in `Trace.pages`. */
export interface Observation {
  /** Class of the request, if the restore named one. */
  readonly variant: string | undefined
  /**
   * Faults before the application's mark, in first-touch order; of a restore with a set only the
   * late, residual and held-out ones.
   */
  readonly pages: Uint32Array
  /** Times of the faults in microseconds, as in `Trace.timesUs`. */
  readonly timesUs: Uint32Array
  /**
   * Pages that were prefetched, so that a touch of them is not seen; without the held-out ones.
   * `undefined`: no set, every touch was seen.
   */
  readonly prefetched: Uint32Array | undefined
  /** Pages of the set that were left out. */
  readonly heldOut: Uint32Array
  /** Mean wait of a fault in this restore, in microseconds. */
  readonly faultUs?: number | undefined
  /** Cost of installing a page in this restore, in microseconds. */
  readonly installUs?: number | undefined
  /** Time from the end of `restore()` to the mark, in milliseconds. */
  readonly responseMs?: number | undefined
  /** Time during which the guest waited for pages, in milliseconds. */
  readonly stalledMs?: number | undefined
}

/** An observation in the light of what was known before it, by slots. */
export interface Seen {
  /** Number of its scope. */
  readonly scope: number
  /** Pages that faulted and were in no set, if there was a set. */
  readonly residual: readonly number[]
  readonly heldOut: Uint32Array
  readonly heldOutTouched: readonly number[]
}
