import { freemem } from 'node:os'
import { native, sampleDiskPages } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { report, type WarningEvent } from '../events.js'
import { checkOptions, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import {
  checkDisk,
  checkSize,
  otherDiskSize,
  statDiskImage,
  statMemoryFile,
} from '../snapshot/disk-image.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { internalsOf } from '../working-set/internals.js'
import { openSnapshot, readOnce } from '../working-set/open.js'
import { type WorkingSet, workingSetRule } from '../working-set/working-set.js'
import { fileError, paddedSize } from './files.js'

export interface PrefetchPageCacheOptions {
  /**
   * The snapshot whose memory file the VMM maps. Without `diskImages`, none are prefetched.
   */
  readonly snapshot: Snapshot
  /** What to bring in: a working set, or the path of one's file. */
  readonly workingSet: WorkingSet | string
  /**
   * At most this many bytes are read, over all files.
   * @default half of the memory that is available now
   */
  readonly maxBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Called with a `warning` for a disk image that is left out. */
  readonly onEvent?: ((event: WarningEvent) => void) | undefined
}

/** Result of a prefetch into the page cache. */
export interface PageCachePrefetchResult {
  /** Number of 4 KiB pages of the working set that were looked for, over all files. */
  readonly pageCount: number
  /** Number of these that were in the page cache before; 0 where the kernel does not tell. */
  readonly residentPageCount: number
  /** Bytes that were read. */
  readonly bytes: number
  /** Number of runs of pages in which they lay. */
  readonly extentCount: number
  /** Time from the call until all reads were submitted, in milliseconds. */
  readonly submittedMs: number
  /** Time from the call until all reads were completed, in milliseconds. */
  readonly completedMs: number
  /** Whether all is there: false when `maxBytes` was reached, or a disk image was left out. */
  readonly complete: boolean
}

/**
 * Brings a working set into the page cache, for a VMM that maps the memory file: in first-touch order,
 * the memory file and the disk images as one plan, with the device's queue full. What is there
 * already costs one system call for each run of pages, and nothing where samples of the memory file, up
 * to 128 runs, are all there and no disk image is given. Nothing is evicted but what the kernel itself
 * chooses when memory is short.
 *
 * Resolves when all is there. A guest can run meanwhile; it finds what was brought in.
 *
 * A disk image that changed since the record, or that cannot be read, is left out, which a
 * `warning` reports: the places are of no use then, and only time would be lost.
 *
 * @throws TypeError for options that make no sense, or more `diskImages` than the set has.
 * @throws ReapTraceError
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`: the working set cannot be used,
 * - `ERR_SNAPSHOT_MISMATCH`: it was made from a memory file of another size,
 * - `ERR_SOURCE_READ`: the memory file cannot be read.
 * @throws the reason of `signal` when it aborts.
 */
export async function prefetchPageCache(
  options: PrefetchPageCacheOptions,
): Promise<PageCachePrefetchResult> {
  checkOptions('prefetchPageCache()', options, {
    snapshot: snapshotRule,
    workingSet: required(workingSetRule),
    maxBytes: rules.count,
    signal: rules.signal,
    onEvent: rules.callback,
  })
  checkSnapshot('prefetchPageCache()', options.snapshot)
  const { snapshot, workingSet, maxBytes, signal } = options
  const { memoryFile, diskImages = [] } = snapshot
  signal?.throwIfAborted()
  const opened = await openSnapshot(memoryFile, workingSet, { wantsResidency: true })
  native().closeFiles(opened.files)
  const { set, residency } = opened
  if (residency?.missingPageCount === 0 && diskImages.length === 0) {
    return alreadyCached(residency.pageCount)
  }
  const warn = (error: ReapTraceError) => report(options, { type: 'warning', error })
  return prefetchFiles(set!, { memoryFile, diskImages, maxBytes, signal, warn })
}

/** The result where all `pages` are there. */
export const alreadyCached = (pageCount: number): PageCachePrefetchResult => ({
  pageCount,
  residentPageCount: pageCount,
  bytes: 0,
  extentCount: 0,
  submittedMs: 0,
  completedMs: 0,
  complete: true,
})

/** Options of {@link prefetchFiles}: without a memory file, the disk images alone. */
export interface PrefetchFilesOptions {
  readonly memoryFile: string | undefined
  readonly diskImages: readonly string[]
  readonly maxBytes: number | undefined
  readonly signal: AbortSignal | undefined
  /** Called for a disk image that is left out. */
  readonly warn: (error: ReapTraceError) => void
}

/** {@link prefetchPageCache} for options that were checked. */
export async function prefetchFiles(
  workingSet: WorkingSet | string,
  { memoryFile, diskImages, maxBytes, signal, warn }: PrefetchFilesOptions,
): Promise<PageCachePrefetchResult> {
  signal?.throwIfAborted()
  const set = typeof workingSet === 'string' ? await readOnce(workingSet) : workingSet
  const { handle, disks } = internalsOf(set)
  if (diskImages.length > disks.length) {
    throw new TypeError(
      `Expected no more diskImages than the working set has, ${disks.length}, got ${diskImages.length}`,
    )
  }
  let device = 0
  if (memoryFile !== undefined) {
    const { size, dev } = await statMemoryFile(memoryFile)
    checkSize(memoryFile, Number(size), set.memoryBytes)
    device = Number(dev)
  }
  const images = await usable(diskImages, set)
  signal?.throwIfAborted()

  const [job, end] = native().prefetchPageCache(
    device || images.device,
    [memoryFile ?? '', ...images.paths],
    handle,
    maxBytes ?? Math.floor(freemem() / 2),
  )
  const cancel = () => native().cancelPrefetch(device || images.device, job)
  let onAbort: () => void = () => {}
  // Not for the thread, which may wait for a disk that does not answer.
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => {
      cancel()
      reject(signal?.reason)
    }
  })
  aborted.catch(() => {})
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    const [figures, failure] = await Promise.race([end, aborted])
    const [pageCount = 0, residentPageCount = 0, fetched = 0, extentCount = 0, ...rest] = figures
    const [submittedUs = 0, completedUs = 0, isInBudget = 0, file = 0] = rest
    const failed = failure ? fileError(failure, [memoryFile ?? '', ...diskImages], file) : undefined
    if (failed && file === 0) throw failed
    const error = images.error ?? failed
    if (error) warn(error)
    return {
      pageCount,
      residentPageCount,
      bytes: fetched * PAGE,
      extentCount,
      submittedMs: submittedUs / 1000,
      completedMs: completedUs / 1000,
      complete: isInBudget === 1 && error === undefined,
    }
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}

async function checkImage(path: string, set: WorkingSet, disk: number): Promise<void> {
  const stored = internalsOf(set).file?.disks[disk]
  if (stored) {
    await checkDisk(path, stored)
    return
  }
  // Of traces nothing is known but the size in whole pages.
  const bytes = await paddedSize(path)
  const expected = internalsOf(set).disks[disk]!.bytes
  if (bytes !== expected) throw otherDiskSize(path, bytes, expected)
  await sampleDiskPages(path, new Uint32Array()) // opens it
}

/**
 * The disk images whose places are still good, and why others are not; those have an empty path. The
 * device is that of the first.
 */
async function usable(diskImages: readonly string[], set: WorkingSet) {
  let error: ReapTraceError | undefined
  let device = 0
  const paths = await Promise.all(
    diskImages.map(async (path, i) => {
      try {
        await checkImage(path, set, i)
        device ||= Number((await statDiskImage(path)).dev)
        return path
      } catch (reason) {
        if (!(reason instanceof ReapTraceError)) throw reason
        error ??= reason
        return ''
      }
    }),
  )
  return { paths, error, device }
}
