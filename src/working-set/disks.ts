import { PAGE } from '../page.js'
import { mergeTraces, type Trace } from './trace.js'

/** A contiguous run of 4 KiB pages of a disk image that were first seen together. */
export interface DiskExtent {
  /** Offset in the image, divided by 4096. */
  readonly firstPage: number
  readonly pageCount: number
  /** Time of first use in microseconds, on the clock of the set's `order`. */
  readonly timeUs: number
}

/** Pages of a disk image to prefetch. */
export interface DiskWorkingSet {
  /** File name of the image, without its folder; `undefined` for a set without a file. */
  readonly name: string | undefined
  /** Size of the image in bytes; for a set without a file, rounded up to a multiple of 4096. */
  readonly bytes: number
  /** Number of 4 KiB pages. */
  readonly pageCount: number
  /** The pages as runs, in order of first use. */
  readonly extents: readonly DiskExtent[]
}

/** A disk image without its pages. */
export interface DiskFacts {
  readonly name: string | undefined
  readonly bytes: number
  /** Number of 4 KiB pages. */
  readonly pages: number
}

/** Traces of one disk image, one per run. */
export type DiskRuns = readonly [Trace, ...Trace[]]

/**
 * Checks that each disk has one trace per run, all of the same image.
 *
 * @throws TypeError if not.
 */
export function checkDiskRuns(disks: readonly (readonly Trace[])[], runs: number): DiskRuns[] {
  return disks.map((traces, i) => {
    if (traces.length !== runs) {
      throw new TypeError(
        `Expected a trace of disk ${i} for each of ${runs} runs, got ${traces.length}`,
      )
    }
    const [first, ...rest] = traces as DiskRuns
    for (const trace of [first, ...rest]) {
      if (trace.pageSize !== PAGE) {
        throw new TypeError(
          `Expected traces of disk ${i} to have pages of ${PAGE} bytes, got ${trace.pageSize}`,
        )
      }
      if (trace.memoryBytes !== first.memoryBytes) {
        throw new TypeError(
          `Expected traces of one image as disk ${i}, ` +
            `got memoryBytes ${first.memoryBytes} and ${trace.memoryBytes}`,
        )
      }
    }
    return [first, ...rest]
  })
}

/**
 * Merges the traces of each disk; returns the touches of all disks in the layout of the file
 * format.
 */
export function mergeDisks(
  disks: readonly DiskRuns[],
  minRuns: number,
): { readonly disks: readonly DiskFacts[]; readonly diskTouches: Uint32Array } {
  const merged = disks.map((traces) => mergeTraces(traces, minRuns))
  const facts = merged.map(({ memoryBytes, pages }) => ({
    name: undefined,
    bytes: memoryBytes,
    pages: pages.length,
  }))
  const touches = merged.flatMap(({ pages, timesUs }) =>
    // By time, since the ranks of mergeTraces() do not compare across disks.
    [...pages.keys()]
      .sort((a, b) => timesUs[a]! - timesUs[b]! || pages[a]! - pages[b]!)
      .flatMap((i) => [pages[i]!, timesUs[i]!]),
  )
  return { disks: facts, diskTouches: Uint32Array.from(touches) }
}

/** The disks, each with its touches as runs. */
export function listDisks(
  disks: readonly DiskFacts[],
  diskTouches: Uint32Array,
): readonly DiskWorkingSet[] {
  let next = 0
  return Object.freeze(
    disks.map(({ name, bytes, pages }) => {
      const extents: { firstPage: number; pageCount: number; timeUs: number }[] = []
      for (let i = 0; i < pages; i++, next += 2) {
        const [page, timeUs] = [diskTouches[next]!, diskTouches[next + 1]!]
        const last = extents.at(-1)
        if (last?.timeUs === timeUs && last.firstPage + last.pageCount === page) last.pageCount++
        else extents.push({ firstPage: page, pageCount: 1, timeUs })
      }
      return Object.freeze({ name, bytes, pageCount: pages, extents: Object.freeze(extents) })
    }),
  )
}
