import { freemem } from 'node:os'
import { onAbort } from '../abort.js'
import { native, sampleDiskPages } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { report, type WarningEvent, warning } from '../events.js'
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

/** Options of {@link prefetchPageCache}. */
export interface PrefetchPageCacheOptions {
  /** The snapshot to prefetch. Without `diskImages`, only its memory file is prefetched. */
  readonly snapshot: Snapshot
  /** Pages to prefetch: a working set, or the path of its file. */
  readonly workingSet: WorkingSet | string
  /**
   * Whether to use a working-set file that belongs to another user than this one and root, or that
   * its group or others may write to.
   * @default false
   */
  readonly trustWorkingSet?: boolean | undefined
  /**
   * Maximum number of bytes read, over all files.
   * @default half of the available memory
   */
  readonly maxBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Called with a `warning` for each disk image that is skipped. */
  readonly onEvent?: ((event: WarningEvent) => void) | undefined
}

/** Result of a prefetch into the page cache. */
export interface PageCachePrefetchResult {
  /** Number of 4 KiB pages of the working set, over all files. */
  readonly pageCount: number
  /** Number of these that were already in the page cache; 0 if the kernel does not report it. */
  readonly residentPageCount: number
  /** Number of bytes read. */
  readonly bytes: number
  /** Number of contiguous runs read, each in one request. */
  readonly extentCount: number
  /**
   * Time at which the reads began, in milliseconds of CLOCK_MONOTONIC; absent if samples showed all
   * pages cached.
   */
  readonly startedAtMs?: number | undefined
  /** Time from the first read until all were submitted, in milliseconds. */
  readonly submittedMs: number
  /** Time from the first read until all were completed, in milliseconds. */
  readonly completedMs: number
  /**
   * Whether all pages are in the page cache: false if `maxBytes` was reached or a disk image
   * skipped.
   */
  readonly complete: boolean
}

/**
 * Prefetches a working set into the page cache, for a VMM that maps the memory file. Reads the
 * memory file and the disk images together, in first-touch order, with a full device queue. Runs of
 * pages that are already cached cost one system call each, or none if samples of up to 128 runs are
 * all cached and no disk image is given.
 *
 * Resolves when all pages are in the page cache. The guest may already run.
 *
 * A disk image that is unreadable or has changed since the recording is skipped with a `warning`.
 *
 * @throws TypeError for invalid options, or more `diskImages` than the set has.
 * @throws ReapTraceError
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_UNTRUSTED_FILE`: the working set cannot
 *   be used,
 * - `ERR_SNAPSHOT_MISMATCH`: it was recorded from a memory file of another size,
 * - `ERR_SOURCE_READ`: the memory file cannot be read.
 * @throws the reason of `signal` when it aborts.
 */
export async function prefetchPageCache(
  options: PrefetchPageCacheOptions,
): Promise<PageCachePrefetchResult> {
  checkOptions('prefetchPageCache()', options, {
    snapshot: snapshotRule,
    workingSet: required(workingSetRule),
    trustWorkingSet: rules.boolean,
    maxBytes: rules.count,
    signal: rules.signal,
    onEvent: rules.callback,
  })
  checkSnapshot('prefetchPageCache()', options.snapshot)
  const { snapshot, workingSet, trustWorkingSet, maxBytes, signal } = options
  const { memoryFile, diskImages = [] } = snapshot
  signal?.throwIfAborted()
  const opened = await openSnapshot(memoryFile, workingSet, {
    wantsResidency: true,
    isTrusted: trustWorkingSet,
  })
  native().closeFiles(opened.files)
  const { set, residency } = opened
  if (residency?.missingPageCount === 0 && diskImages.length === 0) {
    return alreadyCached(residency.pageCount)
  }
  const warn = (error: ReapTraceError) => report(options, warning(error))
  return prefetchFiles(set!, { memoryFile, diskImages, trustWorkingSet, maxBytes, signal, warn })
}

/** Result when all pages are already cached. */
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
  readonly trustWorkingSet: boolean | undefined
  readonly maxBytes: number | undefined
  readonly signal: AbortSignal | undefined
  /** Called for each disk image that is skipped. */
  readonly warn: (error: ReapTraceError) => void
}

/** {@link prefetchPageCache} for validated options. */
export async function prefetchFiles(
  workingSet: WorkingSet | string,
  { memoryFile, diskImages, trustWorkingSet = false, maxBytes, signal, warn }: PrefetchFilesOptions,
): Promise<PageCachePrefetchResult> {
  signal?.throwIfAborted()
  const set =
    typeof workingSet === 'string' ? await readOnce(workingSet, trustWorkingSet) : workingSet
  const { handle, disks } = internalsOf(set)
  if (diskImages.length > disks.length) {
    throw new TypeError(
      `Expected at most ${disks.length} diskImages, one for each of the working set's disks, got ${diskImages.length}`,
    )
  }
  let device = 0
  if (memoryFile !== undefined) {
    const { size, dev } = await statMemoryFile(memoryFile)
    checkSize(memoryFile, Number(size), set.memoryBytes)
    device = Number(dev)
  }
  const images = await checkImages(diskImages, set)
  signal?.throwIfAborted()

  const started = native().prefetchPageCache(
    device || images.device,
    [memoryFile ?? '', ...images.paths],
    handle,
    maxBytes ?? Math.floor(freemem() / 2),
  )
  if (isFailure(started)) throw toError(started, {})
  const [job, end] = started
  const cancel = () => native().cancelPrefetch(device || images.device, job)
  let removeListener = () => {}
  // Rejects at once: the thread may be waiting for a disk that does not answer.
  const aborted = new Promise<never>((_, reject) => {
    removeListener = onAbort(signal, (reason) => {
      cancel()
      reject(reason)
    })
  })
  aborted.catch(() => {})
  try {
    const [figures, failure] = await Promise.race([end, aborted])
    const [pageCount = 0, residentPageCount = 0, fetched = 0, extentCount = 0, ...rest] = figures
    const [submittedUs = 0, completedUs = 0, isInBudget = 0, file = 0, startedAtMs] = rest
    const failed = failure ? fileError(failure, [memoryFile ?? '', ...diskImages], file) : undefined
    if (failed && file === 0) throw failed
    const error = images.error ?? failed
    if (error) warn(error)
    return {
      pageCount,
      residentPageCount,
      bytes: fetched * PAGE,
      extentCount,
      startedAtMs,
      submittedMs: submittedUs / 1000,
      completedMs: completedUs / 1000,
      complete: isInBudget === 1 && error === undefined,
    }
  } finally {
    removeListener()
  }
}

async function checkImage(path: string, set: WorkingSet, disk: number): Promise<void> {
  const stored = internalsOf(set).file?.disks[disk]
  if (stored) {
    await checkDisk(path, stored)
    return
  }
  // A set without a file has no samples, only the size in whole pages.
  const bytes = await paddedSize(path)
  const expected = internalsOf(set).disks[disk]!.bytes
  if (bytes !== expected) throw otherDiskSize(path, bytes, expected)
  await sampleDiskPages(path, new Uint32Array()) // opens it
}

/**
 * Checks the disk images. Unusable ones get an empty path, and the first of their errors is
 * returned. `device` is that of the first usable one.
 */
async function checkImages(diskImages: readonly string[], set: WorkingSet) {
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
