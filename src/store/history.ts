import type { Backend, Warmth } from '../restore/backend.js'

/** Restore in the history of a snapshot. Counts of pages are in 4 KiB. */
export interface HistoryLine {
  /** Time of the restore: ISO 8601, UTC. */
  readonly at: string
  /** Class of the request; absent if the restore named none. */
  readonly variant?: string | undefined
  readonly backend: Backend
  /** Whether it had no set to prefetch, so that every touch was recorded. */
  readonly recorded: boolean
  /** Whether the backend was tried only to compare both. */
  readonly trial?: true | undefined
  /** State of the page cache for its set. */
  readonly warmth?: Warmth | undefined
  /** Time from the end of `restore()` to the application's mark, in milliseconds. */
  readonly responseMs?: number | undefined
  /** Number of pages prefetched. */
  readonly prefetchedPageCount?: number | undefined
  /** Number of bytes that the prefetch read from the disk. */
  readonly diskBytes?: number | undefined
  /** Number of page faults until the mark. */
  readonly faults?: number | undefined
  /** Number of faults on pages that the prefetch was yet to install. */
  readonly lateFaults?: number | undefined
  /** Number of faults on pages outside the set, without held-out pages. */
  readonly residualFaults?: number | undefined
  /** Number of pages of the set that were left out to see whether they are needed. */
  readonly heldOutPageCount?: number | undefined
  /** Number of held-out pages that the guest touched. */
  readonly heldOutFaults?: number | undefined
  /** Time during which the guest waited for pages, in milliseconds. */
  readonly stalledMs?: number | undefined
}

/** Lines of a history file that are whole. */
export function parseHistory(lines: readonly string[]): HistoryLine[] {
  return lines.flatMap((line) => {
    try {
      const value = JSON.parse(line) as HistoryLine
      return typeof value?.at === 'string' ? [value] : []
    } catch {
      return []
    }
  })
}
