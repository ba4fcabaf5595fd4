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
