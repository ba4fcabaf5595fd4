import type { Trace } from '../../index.js'
import { PAGE } from './units.js'

/** Growth of a working set over time. */
export interface Growth {
  /** Duration of a step in milliseconds. */
  readonly stepMs: number
  /** Number of 4 KiB pages touched by the end of each step. */
  readonly pageCounts: readonly number[]
}

/**
 * The growth in this many equal steps, or `undefined` without times. The steps end at the last
 * touch, or earlier if most pages are touched in a small part of that time.
 */
export function growthOf({ timesUs, pageSize }: Trace, steps: number): Growth | undefined {
  const times = timesUs.slice().sort()
  const lastUs = times.at(-1) ?? 0
  if (lastUs === 0) return undefined
  const mostUs = times[Math.floor(0.8 * (times.length - 1))]!
  const endUs = mostUs > 0 && 4 * mostUs < lastUs ? 1.5 * mostUs : lastUs
  let touched = 0
  const pageCounts = Array.from({ length: steps }, (_, step) => {
    while (touched < times.length && times[touched]! * steps <= endUs * (step + 1)) touched++
    return touched * (pageSize / PAGE)
  })
  return { stepMs: endUs / steps / 1000, pageCounts }
}

const BARS = ' ▁▂▃▄▅▆▇█'
const ROWS = 6

/** Rows of a plot, the highest first: a column per step, filled up to its share of `pageCount`. */
export function drawGrowth({ pageCounts }: Growth, pageCount: number): string[] {
  const levels = BARS.length - 1
  return Array.from({ length: ROWS }, (_, row) => {
    const below = (ROWS - 1 - row) * levels
    return pageCounts
      .map((count) => {
        const height = Math.ceil((count / pageCount) * ROWS * levels)
        return BARS[Math.min(levels, Math.max(0, height - below))]
      })
      .join('')
  })
}
