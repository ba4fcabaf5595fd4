import type { Extent } from './extents.js'
import type { Manifest } from './file/format.js'

/** Extents whose length is in one range, which ends where the length doubles. */
export interface RunLengths {
  readonly fromPages: number
  readonly toPages: number
  readonly extents: number
  /** 4 KiB pages in these extents. */
  readonly pages: number
}

/** A working set in numbers. Pages are of 4 KiB except as `pageSize` says. */
export interface WorkingSetSummary {
  readonly pageSize: number
  readonly memoryBytes: number
  readonly runs: number
  readonly pages: number
  readonly bytes: number
  /** Of the guest's memory, 0 to 1. */
  readonly share: number
  readonly extents: number
  /** Lengths of the extents, the shortest first; ranges without extents are left out. */
  readonly runLengths: readonly RunLengths[]
  /** When the last page was first touched, in microseconds since the VM connected. */
  readonly lastTouchUs: number
  /** The disk images, when there are any: pages and extents are how many. */
  readonly disks?: readonly {
    readonly name: string | undefined
    readonly bytes: number
    readonly pages: number
    readonly extents: number
  }[]
  /** What there is to say of the file, for a working set that was read from one. */
  readonly file?: {
    readonly path: string
    /** Name of this very content, drawn when the file was written: 16 bytes in hexadecimal. */
    readonly id: string
    readonly fileBytes: number
    /** Parts that are fetched and installed as one. */
    readonly groups: number
    /** Runs of pages in all groups: what is installed by one call. */
    readonly extents: number
    readonly dataPages: number
    /** Pages of zeros, which are not stored. */
    readonly zeroPages: number
    readonly manifest: Manifest
  }
}

export function runLengths(extents: readonly Extent[]): RunLengths[] {
  const ranges = new Map<number, { extents: number; pages: number }>()
  for (const { pageCount } of extents) {
    const fromPages = 2 ** Math.floor(Math.log2(pageCount))
    const range = ranges.get(fromPages) ?? { extents: 0, pages: 0 }
    range.extents++
    range.pages += pageCount
    ranges.set(fromPages, range)
  }
  return [...ranges]
    .sort(([a], [b]) => a - b)
    .map(([fromPages, range]) => ({ fromPages, toPages: 2 * fromPages - 1, ...range }))
}
