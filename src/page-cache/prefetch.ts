import { freemem } from 'node:os'
import { native, sampleDiskPages } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { checkOptions, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import {
  checkDisk,
  checkSize,
  otherDiskSize,
  statDiskImage,
  statMemoryFile,
} from '../snapshot/disk-image.js'
import { internalsOf } from '../working-set/internals.js'
import { readOnce } from '../working-set/open.js'
import { type WorkingSet, workingSetRule } from '../working-set/working-set.js'
import { diskImagesRule, fileError, paddedSize } from './files.js'
import { findResidency } from './residency.js'

export interface PrefetchPageCacheOptions {
  /** The snapshot's memory file, which the VMM maps. */
  readonly memoryFile: string
  /** What to bring in: a working set, or the path of one's file. */
  readonly workingSet: WorkingSet | string
  /** The disk images of the record, in its order. Those that are left out are not prefetched. */
  readonly diskImages?: readonly string[] | undefined
  /**
   * At the most this many bytes are read, over all files.
   * @default half of the memory that is available now
   */
  readonly maxBytes?: number | undefined
  readonly signal?: AbortSignal | undefined
}

/** What a prefetch into the page cache did. */
export interface PageCachePrefetchResult {
  /** 4 KiB pages of the working set that were asked for, over all files: all, within the budget. */
  readonly pages: number
  /** Those that were in the page cache before; 0 where the kernel does not tell. */
  readonly residentPages: number
  /** Bytes that were read. */
  readonly bytes: number
  /** Runs of pages in which they lay. */
  readonly extents: number
  /** From the call until the disk was asked for all, in milliseconds. */
  readonly askedMs: number
  /** From the call until all was there, in milliseconds. */
  readonly thereMs: number
  /** Whether all was brought in: not so when `maxBytes` was reached, or with an `error`. */
  readonly complete: boolean
  /** Why a disk image was left out. */
  readonly error?: ReapTraceError
}

/**
 * Brings a working set into the page cache, for a VMM that maps the memory file: in first-touch order,
 * the memory file and the disk images as one plan, with the device's queue full. What is there
 * already costs one system call for each run of pages, and nothing at all where samples of the memory
 * file, up to 128 runs, are all there and no disk image is given. Nothing is evicted but what the kernel itself
 * chooses when memory is short.
 *
 * Resolves when all is there. A guest can run meanwhile; it finds what was brought in.
 *
 * A disk image that changed since the record, or that cannot be read, is left out, and `error` says
 * so: the places are of no use then, and only time would be lost. Where nothing is brought in, nothing of
 * the working set is used, and it is not checked.
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
    memoryFile: required(rules.path),
    workingSet: required(workingSetRule),
    diskImages: diskImagesRule,
    maxBytes: rules.count,
    signal: rules.signal,
  })
  const { memoryFile, workingSet, diskImages = [], maxBytes, signal } = options
  signal?.throwIfAborted()
  if (typeof workingSet === 'string' && diskImages.length === 0) {
    const { pages, missingPages, memoryBytes, memoryFileBytes, pageSize } = await findResidency(
      memoryFile,
      workingSet,
    )
    const isThere = pageSize !== undefined && pages > 0 && missingPages === 0
    if (isThere && memoryBytes === memoryFileBytes) return nothingToBring(pages)
  }
  return bringIn(workingSet, { memoryFile, diskImages, maxBytes, signal })
}

/** The result where all `pages` are there. */
export const nothingToBring = (pages: number): PageCachePrefetchResult => ({
  pages,
  residentPages: pages,
  bytes: 0,
  extents: 0,
  askedMs: 0,
  thereMs: 0,
  complete: true,
})

/** What {@link bringIn} reads: without a memory file, the disk images alone. */
export interface BringInOptions {
  readonly memoryFile: string | undefined
  readonly diskImages: readonly string[]
  readonly maxBytes: number | undefined
  readonly signal: AbortSignal | undefined
}

/** {@link prefetchPageCache} for options that were checked. */
export async function bringIn(
  workingSet: WorkingSet | string,
  { memoryFile, diskImages, maxBytes, signal }: BringInOptions,
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
    const [pages = 0, resident = 0, fetched = 0, extents = 0, ...rest] = figures
    const [askedUs = 0, thereUs = 0, isInBudget = 0, file = 0] = rest
    const failed = failure ? fileError(failure, [memoryFile ?? '', ...diskImages], file) : undefined
    if (failed && file === 0) throw failed
    const error = images.error ?? failed
    return {
      pages,
      residentPages: resident,
      bytes: fetched * PAGE,
      extents,
      askedMs: askedUs / 1000,
      thereMs: thereUs / 1000,
      complete: isInBudget === 1 && error === undefined,
      ...(error && { error }),
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
