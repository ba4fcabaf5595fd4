import { PAGE } from '../page.js'
import { mergeTraces, Trace } from './trace.js'

/** A contiguous run of 4 KiB pages of a disk image that were first seen in use together. */
export interface DiskExtent {
  /** Its offset in the image, divided by 4096. */
  readonly firstPage: number
  readonly pageCount: number
  /** When, in microseconds on the clock of the set's `order`. */
  readonly timeUs: number
}

/** The pages of a disk image worth having before the guest asks for them. */
export interface DiskWorkingSet {
  /** File name of the image, without its folder; `undefined` before the set is in a file. */
  readonly name: string | undefined
  /** Size of the image; before the set is in a file, rounded up to a multiple of 4096. */
  readonly bytes: number
  /** How many pages of 4 KiB. */
  readonly pages: number
  /** The pages as runs, in the order in which they were first seen in use. */
  readonly extents: readonly DiskExtent[]
}

/** What a table of disk extents does not say of a disk. */
export interface DiskFacts {
  readonly name: string | undefined
  readonly bytes: number
}

/** The runs of one disk image. */
export type DiskRuns = readonly [Trace, ...Trace[]]

/**
 * Checks that each disk has a trace of each of `runs` runs, all of one image.
 *
 * @throws TypeError when not.
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
      if (!(trace instanceof Trace)) {
        throw new TypeError(`Expected traces of disk ${i} to be of class Trace`)
      }
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
 * The table of disk extents: disk, first page, page count and time of each, all disks in one order.
 *
 * Times, not the places that {@link mergeTraces} gives, as those are of one disk alone.
 */
export function mergeDisks(disks: readonly DiskRuns[], minRuns: number): Uint32Array {
  const merged = disks.map((traces) => mergeTraces(traces, minRuns))
  const touches = merged.flatMap(({ pages, timesUs }, disk) =>
    Array.from(pages, (page, i) => ({ disk, page, timeUs: timesUs[i]! })),
  )
  touches.sort((a, b) => a.timeUs - b.timeUs || a.disk - b.disk || a.page - b.page)
  const words: number[] = []
  for (const { disk, page, timeUs } of touches) {
    const last = words.length - 4
    const goesOn =
      words[last] === disk &&
      words[last + 3] === timeUs &&
      words[last + 1]! + words[last + 2]! === page
    if (goesOn) words[last + 2]!++
    else words.push(disk, page, 1, timeUs)
  }
  return Uint32Array.from(words)
}

/** The disks with their parts of the table. */
export function listDisks(
  disks: readonly DiskFacts[],
  table: Uint32Array,
): readonly DiskWorkingSet[] {
  const extents: DiskExtent[][] = disks.map(() => [])
  const pages = disks.map(() => 0)
  for (let i = 0; i < table.length; i += 4) {
    const [disk, firstPage, pageCount] = [table[i]!, table[i + 1]!, table[i + 2]!]
    extents[disk]!.push({ firstPage, pageCount, timeUs: table[i + 3]! })
    pages[disk]! += pageCount
  }
  return Object.freeze(
    disks.map(({ name, bytes }, i) =>
      Object.freeze({ name, bytes, pages: pages[i]!, extents: Object.freeze(extents[i]!) }),
    ),
  )
}

/** The page at a place in the order of a disk, counted from 0. */
export function pageAt(extents: readonly DiskExtent[], place: number): number {
  let before = 0
  for (const { firstPage, pageCount } of extents) {
    if (place < before + pageCount) return firstPage + place - before
    before += pageCount
  }
  throw new RangeError(`There is no page ${place} in the order of a disk of ${before} pages`)
}
