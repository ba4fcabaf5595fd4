import { type NativeRecorder, native } from '../binding/addon.js'
import { isFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { report, type WarningEvent } from '../events.js'
import { checkOptions, rules } from '../options.js'
import { PAGE } from '../page.js'
import { statMemoryFile } from '../snapshot/disk-image.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { Trace } from '../working-set/trace.js'
import { fileError, paddedSize } from './files.js'

export interface RecordPageCacheOptions {
  /**
   * The snapshot whose memory file the VMM maps (Firecracker's `File` backend, QEMU, others), with the disk
   * images to record.
   */
  readonly snapshot: Snapshot
  /**
   * How often to look, in milliseconds. What is new between two looks is in no order.
   * @default 2
   */
  readonly intervalMs?: number | undefined
  /** Called with a `warning` where the page table of a process that maps the memory file may not be read. */
  readonly onEvent?: ((event: WarningEvent) => void) | undefined
}

/** Result of a recording of the page cache. */
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
  /** Number of pages of the memory file that came into the page cache and that no process mapped. */
  readonly trimmedPageCount: number
  readonly lookCount: number
  /** The longest time between two looks, in milliseconds. */
  readonly longestGapMs: number
}

/** A recording in progress; see {@link recordPageCache}. */
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
 * const snapshot = { memoryFile, diskImages: ['rootfs.img'] }
 * const recording = await recordPageCache({ snapshot })
 * // restore the VM with its File backend, invoke it once
 * const { trace, disks } = await recording.stop()
 * await WorkingSet.fromTraces([trace], { disks: disks.map((disk) => [disk]) })
 *   .write('vm.ws', { snapshot })
 */
export async function recordPageCache(
  options: RecordPageCacheOptions,
): Promise<PageCacheRecording> {
  checkOptions('recordPageCache()', options, {
    snapshot: snapshotRule,
    intervalMs: {
      expected: 'a number of milliseconds from 0.1 to 1000',
      accepts: (value) => typeof value === 'number' && value >= 0.1 && value <= 1000,
    },
    onEvent: rules.callback,
  })
  checkSnapshot('recordPageCache()', options.snapshot)
  const { intervalMs = 2 } = options
  const { memoryFile, diskImages = [] } = options.snapshot
  const paths = [memoryFile, ...diskImages]
  const sizes = [Number((await statMemoryFile(memoryFile)).size)]
  for (const path of diskImages) sizes.push(await paddedSize(path))
  const started = await native().startRecording(paths, Math.round(intervalMs * 1000))
  // Its offset is the file's place.
  if (isFailure(started)) {
    throw fileError({ ...started, offset: 0n }, paths, Number(started.offset))
  }
  return new Recording(started, sizes, options)
}

class Recording implements PageCacheRecording {
  readonly #recorder: NativeRecorder
  readonly #sizes: readonly number[]
  readonly #listener: Pick<RecordPageCacheOptions, 'onEvent'>
  #record: Promise<PageCacheRecord> | undefined

  constructor(
    recorder: NativeRecorder,
    sizes: readonly number[],
    listener: Pick<RecordPageCacheOptions, 'onEvent'>,
  ) {
    this.#recorder = recorder
    this.#sizes = sizes
    this.#listener = listener
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
    const [pid = 0, errno = 0, lookCount = 0, longestGapUs = 0] = figures
    const inCache = this.#sizes.map((size, file) => traceOf(cached, file, size))
    const trace = pid > 0 ? traceOf(mapped, 0, this.#sizes[0]!) : inCache[0]!
    if (pid === 0 && errno !== 0) {
      report(this.#listener, { type: 'warning', error: pageTableHidden(errno) })
    }
    return {
      trace,
      disks: inCache.slice(1),
      mapper: pid > 0 ? { pid } : undefined,
      trimmedPageCount: Math.max(0, inCache[0]!.pages.length - trace.pages.length),
      lookCount,
      longestGapMs: longestGapUs / 1000,
    }
  }
}

const pageTableHidden = (errno: number) =>
  new ReapTraceError(
    'ERR_PAGE_CACHE',
    'the page table of the process that maps the memory file may not be read',
    {
      errno,
      syscall: 'open',
      check: 'pagemap',
      hint: 'Record as the user that runs the VMM, or as root; without, the record has what the kernel read ahead.',
    },
  )

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
