/** What one restore showed of the pages of its snapshot. Page numbers as in `Trace.pages`. */
export interface Observation {
  readonly variant: string | undefined
  /**
   * Faults before the application's mark, in first-touch order; of a restore with a set only the
   * late, residual and held-out ones.
   */
  readonly pages: Uint32Array
  readonly timesUs: Uint32Array
  /**
   * Pages that were prefetched, so that a touch of them is not seen; without the held-out ones.
   * `undefined`: no set, every touch was seen.
   */
  readonly prefetched: Uint32Array | undefined
  /** Pages of the set that were left out. */
  readonly heldOut: Uint32Array
  /** Mean wait of a fault, as measured in this restore, if it was. */
  readonly faultUs?: number | undefined
  /** Cost of an install per page. */
  readonly installUs?: number | undefined
  /** Handshake to mark. */
  readonly responseMs?: number | undefined
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
