import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'

/** How much of a working set is in the page cache, in the pages of the memory file. */
export interface Residency {
  /** 4 KiB pages of the working set. */
  readonly pages: number
  /** Those that would have to be read from the disk; an estimate from samples. */
  readonly missingPages: number
  /** Whether the kernel tells this user; otherwise one page of each sampled extent was tried. */
  readonly isVisible: boolean
}

/** A {@link Residency}, and what the header of the working-set file says. */
export interface SampledSet extends Residency {
  readonly memoryFileBytes: number
  /** Of the guest; `undefined` without a working set, or where the file has no sound header. */
  readonly pageSize: number | undefined
  /** The size of memory that the working set is for. */
  readonly memoryBytes: number
  /** Disk images of which the working set has pages. */
  readonly disks: number
  /** Share of the touched pages that the guest changed; `undefined` where nobody looked. */
  readonly writtenShare: number | undefined
}

/**
 * Takes samples on a pool thread: a fraction of a millisecond where the tables of the working set are in
 * the page cache, two reads of the disk where they are not. An empty path stands for no working set.
 *
 * @throws ReapTraceError `ERR_SOURCE_READ` or `ERR_WORKING_SET_IO` where a file cannot be opened.
 */
export async function findResidency(memoryFile: string, workingSet: string): Promise<SampledSet> {
  const found = await native().findResidency(memoryFile, workingSet)
  if (isFailure(found)) throw toError(found, { memoryFile, workingSetPath: workingSet })
  const [memoryFileBytes = 0, isVisible = 0, pageSize = 0, memoryBytes = 0, pages = 0, ...rest] =
    found
  const [disks = 0, touches = 0, writtenTouches = 0, missingPages = 0] = rest
  return {
    pages,
    missingPages,
    isVisible: isVisible === 1,
    memoryFileBytes,
    pageSize: pageSize || undefined,
    memoryBytes,
    disks,
    writtenShare:
      touches === 0 || writtenTouches === 0
        ? undefined
        : Math.min(1, (writtenTouches - 1) / touches),
  }
}
