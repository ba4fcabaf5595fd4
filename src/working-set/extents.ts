import { PAGE } from '../page.js'
import type { Trace } from './trace.js'

/** A contiguous run of 4 KiB pages of a working set. */
export interface Extent {
  readonly firstPage: number
  readonly pageCount: number
  /** Lowest rank of its pages in first-touch order, counted in 4 KiB pages. */
  readonly rank: number
}

/** The pages of a trace as runs, sorted by address. */
export function mergeExtents({ pages, pageSize }: Trace): Extent[] {
  const step = pageSize / PAGE
  const extents: { firstPage: number; pageCount: number; rank: number }[] = []
  let last: (typeof extents)[number] | undefined
  for (const i of Uint32Array.from(pages.keys()).sort((a, b) => pages[a]! - pages[b]!)) {
    const firstPage = pages[i]! * step
    if (last && last.firstPage + last.pageCount === firstPage) {
      last.pageCount += step
      last.rank = Math.min(last.rank, i * step)
    } else {
      last = { firstPage, pageCount: step, rank: i * step }
      extents.push(last)
    }
  }
  return extents
}
