import type { Extent } from './extents.js'
import type { Manifest } from './file/format.js'

/** Extents whose length is in one range, which ends where the length doubles. */
export interface RunLengths {
  readonly fromPages: number
  readonly toPages: number
  readonly extentCount: number
  /** 4 KiB pages in these extents. */
  readonly pageCount: number
}

/** A working set in numbers. Pages are of 4 KiB except as `pageSize` says. */
export interface WorkingSetSummary {
  readonly pageSize: number
  readonly memoryBytes: number
  readonly runCount: number
  readonly pageCount: number
  readonly bytes: number
  /** Of the guest's memory, 0 to 1. */
  readonly share: number
  readonly extentCount: number
  /** Lengths of the extents, the shortest first; ranges without extents are left out. */
  readonly runLengths: readonly RunLengths[]
  /** When the last page was first touched, in microseconds since the VM connected. */
  readonly lastTouchUs: number
  /** The disk images, when there are any. */
  readonly disks?: readonly {
    readonly name: string | undefined
    readonly bytes: number
    readonly pageCount: number
    readonly extentCount: number
  }[]
  /** What there is to say of the file, for a working set that was read from one. */
  readonly file?: {
    readonly path: string
    /** Name of this very content, drawn when the file was written: 16 bytes in hexadecimal. */
    readonly id: string
    readonly fileBytes: number
    /** Number of parts that are fetched and installed as one. */
    readonly groupCount: number
    /** Number of runs of pages in all groups, each of which is installed by one call. */
    readonly extentCount: number
    /** Number of pages that are stored. */
    readonly dataPageCount: number
    /** Number of pages of zeros, which are not stored. */
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
