import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'

/** What a restore would find now; estimates from samples. */
export interface Residency {
  /** 4 KiB pages of the working set. */
  readonly pages: number
  /** Runs of pages in which those lie. */
  readonly extents: number
  /** Of the pages, those of the memory file that are not in the page cache. */
  readonly missingPages: number
  /** Runs of pages in which those lie. */
  readonly missingExtents: number
  /** Bytes of the working-set file's data that are not in the page cache. */
  readonly missingBytes: number
  /** Whether the kernel tells this user; where not, one page of each sampled run is tried. */
  readonly isVisible: boolean
}

/** A {@link Residency} with what only the choice needs. */
export interface Survey extends Residency {
  /** Of the guest; `undefined` without a working set, or with one that cannot be made out. */
  readonly pageSize: number | undefined
  /** That the working set is for. */
  readonly memoryBytes: number
  readonly memoryFileBytes: number
  /** Disk images of which the working set has pages. */
  readonly disks: number
  readonly memoryDevice: number
  readonly setDevice: number
  /** Aligned stretches of 64 KiB that have pages of the working set; an estimate from samples. */
  readonly windows: number
  /** Of the memory file's pages in and around those, the share that is in the page cache. */
  readonly shareAround: number
  /**
   * What the kernel takes to pass one of them, in nanoseconds; `undefined` where that cannot be told. It
   * says how large the pieces are in which they lie there.
   */
  readonly lookNs: number | undefined
}

/**
 * Takes a fraction of a millisecond: on the JavaScript thread where nothing of it can wait, and else on a
 * pool thread, which is that far away again. Throws what `serve()` would.
 */
export async function surveyFiles(memoryFile: string, workingSet: string): Promise<Survey> {
  const { survey, surveyAtOnce } = native()
  const found = surveyAtOnce(memoryFile, workingSet) ?? (await survey(memoryFile, workingSet))
  if (isFailure(found)) throw toError(found, { memoryFile, workingSetPath: workingSet })
  const [pageSize, memoryBytes, pages, extents, disks, memoryDevice, setDevice, ...rest] =
    found as unknown as number[]
  const [memoryFileBytes, missingPages, missingExtents, missingBytes, isVisible, ...more] = rest
  const [windows, shareAround, lookNs] = more
  return {
    pageSize: pageSize || undefined,
    memoryBytes: memoryBytes!,
    memoryFileBytes: memoryFileBytes!,
    disks: disks!,
    memoryDevice: memoryDevice!,
    setDevice: setDevice!,
    pages: pages!,
    extents: extents!,
    missingPages: missingPages!,
    missingExtents: missingExtents!,
    missingBytes: missingBytes!,
    isVisible: isVisible === 1,
    windows: windows!,
    shareAround: shareAround!,
    lookNs: lookNs || undefined,
  }
}
