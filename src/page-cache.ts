import { freemem } from 'node:os'
import { readOnce } from './checked-plan.js'
import { surveyFiles } from './choice.js'
import { ReapTraceError } from './errors.js'
import {
  isFailure,
  type NativeFailure,
  type NativeRecorder,
  native,
  sampleDiskPages,
  toError,
} from './native.js'
import { checkOptions, type OptionRule, required, rules } from './options.js'
import {
  checkDisk,
  checkIdentity,
  checkSize,
  otherDiskSize,
  statDiskImage,
  statMemoryFile,
} from './snapshot.js'
import { PAGE } from './trace.js'
import { diskCountOf, diskTableOf, planOf, Trace, touchTableOf, WorkingSet } from './working-set.js'

/** A list of paths, as `diskImages` is. */
export const pathsRule: OptionRule = {
  expected: 'an array of at the most 16 non-empty paths',
  accepts: (value) => Array.isArray(value) && value.length <= 16 && value.every(rules.path.accepts),
}

/** A {@link WorkingSet}, or where one is. */
export const workingSetRule: OptionRule = {
  expected: 'a WorkingSet or the path of a working-set file',
  accepts: (value) => value instanceof WorkingSet || rules.path.accepts(value),
}

export interface RecordPageCacheOptions {
  /** The snapshot's memory file, which the VMM maps (Firecracker's `File` backend, QEMU, others). */
  readonly memoryFile: string
  /** Disk images that the guest reads, at the most 16; the order is that of every later restore. */
  readonly diskImages?: readonly string[] | undefined
  /**
   * How often to look, in milliseconds. What is new between two looks is in no order.
   * @default 2
   */
  readonly intervalMs?: number | undefined
}

/** What an invocation brought into the page cache. */
export interface PageCacheRecord {
  /** Pages of the memory file, in the order in which they were seen first. */
  readonly trace: Trace
  /** One for each of `diskImages`, with 4 KiB pages of the image. */
  readonly disks: readonly Trace[]
  /**
   * The process whose page table `trace` was taken from. Without one, `trace` is all that came into
   * the page cache, and that is more than the guest touched: the kernel reads ahead.
   */
  readonly mapper: { readonly pid: number } | undefined
  /** Pages of the memory file that came into the page cache and that no process mapped. */
  readonly trimmedPages: number
  /** Why there is no `mapper` although one was found: its page table may not be read. */
  readonly error: ReapTraceError | undefined
  readonly looks: number
  /** The longest time between two looks, in milliseconds. */
  readonly longestGapMs: number
}

/** A recording that goes on; see {@link recordPageCache}. */
export interface PageCacheRecording extends AsyncDisposable {
  /**
   * Ends the recording. Call it while the VMM still runs, or at least within a few milliseconds of its
   * end. A second call gives the same record.
   */
  stop(): Promise<PageCacheRecord>
}

/**
 * Evicts a snapshot's files from the page cache and records, from then on, which of their pages come
 * back: the working set of a VMM that maps the memory file, with no fault handler.
 *
 * The page cache has more than the guest asked for. A page fault in a mapped file reads the pages
 * around it as well (`read_ahead_kb` of the disk, up to megabytes). While a process maps the memory
 * file and its /proc/PID/pagemap may be read, the record has only pages that this process mapped; of
 * these, reads still bring up to 15 neighbours each (fault-around). Disk images cannot be trimmed so.
 *
 * A thread looks every `intervalMs`, more seldom where one look takes long. Needs no privilege: the
 * files must belong to this process's user or be writable to it, since the kernel tells nobody else.
 *
 * @throws TypeError for options that make no sense.
 * @throws ReapTraceError
 * - `ERR_PAGE_CACHE`: `check` is `mapped` (another process maps a file, so that it cannot be evicted),
 *   `stays` (it cannot be evicted, as a tmpfs) or `hidden` (the kernel does not tell this user),
 * - `ERR_SOURCE_READ`: a file cannot be opened, is empty, or is no regular file.
 *
 * @example
 * const recording = await recordPageCache({ memoryFile, diskImages: ['rootfs.img'] })
 * // restore the VM with its File backend, invoke it once
 * const { trace, disks } = await recording.stop()
 * await WorkingSet.fromTraces([trace], { disks: disks.map((disk) => [disk]) })
 *   .write('vm.ws', { memoryFile, diskImages: ['rootfs.img'] })
 */
export async function recordPageCache(
  options: RecordPageCacheOptions,
): Promise<PageCacheRecording> {
  checkOptions('recordPageCache()', options, {
    memoryFile: required(rules.path),
    diskImages: pathsRule,
    intervalMs: {
      expected: 'a number of milliseconds from 0.1 to 1000',
      accepts: (value) => typeof value === 'number' && value >= 0.1 && value <= 1000,
    },
  })
  const { memoryFile, diskImages = [], intervalMs = 2 } = options
  const paths = [memoryFile, ...diskImages]
  const sizes = [Number((await statMemoryFile(memoryFile)).size)]
  for (const path of diskImages) sizes.push(await paddedSize(path))
  const started = await native().startRecording(paths, Math.round(intervalMs * 1000))
  // Its offset is the file's place.
  if (isFailure(started)) {
    throw fileError({ ...started, offset: 0n }, paths, Number(started.offset))
  }
  return new Recording(started, sizes)
}

/** The size of a disk image with its last page whole. */
async function paddedSize(path: string): Promise<number> {
  const size = Number((await statDiskImage(path)).size)
  if (size > 0) return Math.ceil(size / PAGE) * PAGE
  throw new ReapTraceError('ERR_SOURCE_READ', `the disk image ${path} is empty`, {
    path,
    check: 'empty',
    hint: 'Name the file that the VMM has as its disk.',
  })
}

/** The error of a failure in the file at this place: the memory file, or a disk image after it. */
function fileError(
  failure: NativeFailure,
  [memoryFile = '', ...diskImages]: readonly string[],
  file: number,
): ReapTraceError {
  const diskImage = diskImages[file - 1]
  return toError(failure, diskImage === undefined ? { memoryFile } : { memoryFile, diskImage })
}

class Recording implements PageCacheRecording {
  readonly #recorder: NativeRecorder
  readonly #sizes: readonly number[]
  #record: Promise<PageCacheRecord> | undefined

  constructor(recorder: NativeRecorder, sizes: readonly number[]) {
    this.#recorder = recorder
    this.#sizes = sizes
  }

  stop(): Promise<PageCacheRecord> {
    this.#record ??= this.#stop()
    return this.#record
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
  }

  async #stop(): Promise<PageCacheRecord> {
    const [cached, mapped, figures] = await native().stopRecording(this.#recorder)
    const [pid = 0, errno = 0, looks = 0, longestGapUs = 0] = figures
    const inCache = this.#sizes.map((size, file) => traceOf(cached, file, size))
    const trace = pid > 0 ? traceOf(mapped, 0, this.#sizes[0]!) : inCache[0]!
    const error =
      pid === 0 && errno !== 0
        ? new ReapTraceError(
            'ERR_PAGE_CACHE',
            'the page table of the process that maps the memory file may not be read',
            {
              errno,
              syscall: 'open',
              check: 'pagemap',
              hint: 'Record as the user that runs the VMM, or as root; without, the record has what the kernel read ahead.',
            },
          )
        : undefined
    return {
      trace,
      disks: inCache.slice(1),
      mapper: pid > 0 ? { pid } : undefined,
      trimmedPages: Math.max(0, inCache[0]!.pages.length - trace.pages.length),
      error,
      looks,
      longestGapMs: longestGapUs / 1000,
    }
  }
}

/** The touches of one file as a trace. */
function traceOf(touches: Uint32Array, file: number, memoryBytes: number): Trace {
  const pages: number[] = []
  const timesUs: number[] = []
  for (let i = 0; i < touches.length; i += 3) {
    if (touches[i] !== file) continue
    pages.push(touches[i + 1]!)
    timesUs.push(touches[i + 2]!)
  }
  return new Trace({
    pageSize: PAGE,
    memoryBytes,
    pages: Uint32Array.from(pages),
    timesUs: Uint32Array.from(timesUs),
  })
}

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
  readonly budgetBytes?: number | undefined
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
  /** Whether all was brought in: not so when `budgetBytes` was reached, or with an `error`. */
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
 * - `ERR_SNAPSHOT_MISMATCH`: it was made from another memory file,
 * - `ERR_SOURCE_READ`: the memory file cannot be read.
 * @throws the reason of `signal` when it aborts.
 */
export async function prefetchPageCache(
  options: PrefetchPageCacheOptions,
): Promise<PageCachePrefetchResult> {
  checkOptions('prefetchPageCache()', options, {
    memoryFile: required(rules.path),
    workingSet: required(workingSetRule),
    diskImages: pathsRule,
    budgetBytes: rules.count,
    signal: rules.signal,
  })
  const { memoryFile, workingSet, diskImages = [], budgetBytes, signal } = options
  signal?.throwIfAborted()
  if (typeof workingSet === 'string' && diskImages.length === 0) {
    const { pages, missingPages, memoryBytes, memoryFileBytes, pageSize } = await surveyFiles(
      memoryFile,
      workingSet,
    )
    const isThere = pageSize !== undefined && pages > 0 && missingPages === 0
    if (isThere && memoryBytes === memoryFileBytes) return nothingToBring(pages)
  }
  return bringIn(workingSet, { memoryFile, diskImages, budgetBytes, signal })
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
  readonly budgetBytes: number | undefined
  readonly signal: AbortSignal | undefined
}

/** {@link prefetchPageCache} for options that were checked. */
export async function bringIn(
  workingSet: WorkingSet | string,
  { memoryFile, diskImages, budgetBytes, signal }: BringInOptions,
): Promise<PageCachePrefetchResult> {
  signal?.throwIfAborted()
  const set = typeof workingSet === 'string' ? await readOnce(workingSet) : workingSet
  const disks = diskCountOf(set)
  if (diskImages.length > disks) {
    throw new TypeError(
      `Expected no more diskImages than the working set has, ${disks}, got ${diskImages.length}`,
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
    memoryFile === undefined ? new Uint32Array() : touchTableOf(set),
    set.pageSize / PAGE,
    diskTableOf(set),
    budgetBytes ?? Math.floor(freemem() / 2),
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
    // Meanwhile, as the samples are mostly pages that are on their way.
    const checked =
      memoryFile !== undefined && set.identity ? checkIdentity(memoryFile, set) : undefined
    checked?.catch(cancel)
    const [[figures, failure]] = await Promise.race([Promise.all([end, checked]), aborted])
    const [pages = 0, resident = 0, fetched = 0, extents = 0, ...rest] = figures
    const [askedUs = 0, thereUs = 0, isInBudget = 0, wasAlone = 0, file = 0] = rest
    const failed = failure ? fileError(failure, [memoryFile ?? '', ...diskImages], file) : undefined
    if (failed && file === 0) throw failed
    const error = images.error ?? failed
    const result: PageCachePrefetchResult = {
      pages,
      residentPages: resident,
      bytes: fetched * PAGE,
      extents,
      askedMs: askedUs / 1000,
      thereMs: thereUs / 1000,
      complete: isInBudget === 1 && error === undefined,
      ...(error && { error }),
    }
    if (wasAlone === 1) alone.add(result)
    return result
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}

const alone = new WeakSet<PageCachePrefetchResult>()

/** Whether no other prefetch had a part in the times of one: what it says of the disk is its own. */
export const wasAlone = (result: PageCachePrefetchResult): boolean => alone.has(result)

async function checkImage(path: string, set: WorkingSet, disk: number): Promise<void> {
  const stored = planOf(set)?.disks[disk]
  if (stored) {
    await checkDisk(path, stored)
    return
  }
  // Of traces nothing is known but the size in whole pages.
  const bytes = await paddedSize(path)
  const expected = set.disks[disk]!.bytes
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
