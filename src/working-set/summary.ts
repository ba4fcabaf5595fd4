import type { Extent } from './extents.js'
import type { Manifest } from './file/format.js'

/** Extents with lengths between two powers of two. */
export interface RunLengths {
  readonly fromPages: number
  readonly toPages: number
  readonly extentCount: number
  /** Number of 4 KiB pages in these extents. */
  readonly pageCount: number
}

/** Statistics of a working set. Page counts are in 4 KiB pages. */
export interface WorkingSetSummary {
  readonly pageSize: number
  readonly memoryBytes: number
  readonly runCount: number
  readonly pageCount: number
  readonly bytes: number
  /** Share of the guest's memory, from 0 to 1. */
  readonly share: number
  readonly extentCount: number
  /** Histogram of extent lengths, the shortest first, without empty ranges. */
  readonly runLengths: readonly RunLengths[]
  /** Time of the last first touch, in microseconds since the VM connected. */
  readonly lastTouchUs: number
  /** The disk images, if any. */
  readonly disks?: readonly {
    readonly name: string | undefined
    readonly bytes: number
    readonly pageCount: number
    readonly extentCount: number
  }[]
  /** Facts about the file, for a working set read from one. */
  readonly file?: {
    readonly path: string
    /**
     * Identifier of the content, chosen at random when the file was written: 16 bytes in
     * hexadecimal.
     */
    readonly id: string
    readonly fileBytes: number
    /** Number of groups: units of fetching and installing. */
    readonly groupCount: number
    /** Number of contiguous runs after cutting into groups, each installed by one call. */
    readonly extentCount: number
    /** Number of stored pages. */
    readonly dataPageCount: number
    /** Number of zero pages, which are not stored. */
    readonly zeroPageCount: number
    readonly manifest: Manifest
  }
}

export function runLengths(extents: readonly Extent[]): RunLengths[] {
  const ranges = new Map<number, { extentCount: number; pageCount: number }>()
  for (const { pageCount } of extents) {
    const fromPages = 2 ** Math.floor(Math.log2(pageCount))
    const range = ranges.get(fromPages) ?? { extentCount: 0, pageCount: 0 }
    range.extentCount++
    range.pageCount += pageCount
    ranges.set(fromPages, range)
  }
  return [...ranges]
    .sort(([a], [b]) => a - b)
    .map(([fromPages, range]) => ({ fromPages, toPages: 2 * fromPages - 1, ...range }))
}
