import { type NativeRecorder, native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { report, type WarningEvent, warning } from '../events.js'
import { checkOptions, rules } from '../options.js'
import { PAGE } from '../page.js'
import { statMemoryFile } from '../snapshot/disk-image.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { Trace } from '../working-set/trace.js'
import { fileError, paddedSize } from './files.js'

/** Options of {@link recordPageCache}. */
export interface RecordPageCacheOptions {
  /**
   * The snapshot to record, with its disk images. The VMM maps its memory file (Firecracker's
   * `File` backend, QEMU, others).
   */
  readonly snapshot: Snapshot
  /**
   * Sampling interval in milliseconds. Pages first seen in the same sample have no order.
   * @default 2
   */
  readonly intervalMs?: number | undefined
  /**
   * Called with a `warning` if the page table of a process that maps the memory file may not be
   * read.
   */
  readonly onEvent?: ((event: WarningEvent) => void) | undefined
}

/** Result of a recording of the page cache. */
export interface PageCacheRecord {
  /** Pages of the memory file, in the order first seen. */
  readonly trace: Trace
  /** One trace for each of `diskImages`, in 4 KiB pages of the image. */
  readonly disks: readonly Trace[]
  /**
   * The process whose page table `trace` was taken from. If `undefined`, `trace` holds every page
   * that entered the page cache, which is more than the guest touched, because of read-ahead.
   */
  readonly mapper: { readonly pid: number } | undefined
  /** Number of pages of the memory file that entered the page cache but were not mapped. */
  readonly trimmedPageCount: number
  /** Number of samples taken. */
  readonly lookCount: number
  /** Longest time between two samples, in milliseconds. */
  readonly longestGapMs: number
}

/** A recording in progress; see {@link recordPageCache}. */
export interface PageCacheRecording extends AsyncDisposable {
  /**
   * Ends the recording. Call it while the VMM still runs, or within a few milliseconds of its exit.
   * A second call returns the same record.
   */
  stop(): Promise<PageCacheRecord>
}

/**
 * Evicts a snapshot's files from the page cache and records which of their pages return: the
 * working set of a VMM that maps the memory file, without a fault handler.
 *
 * The page cache receives more than the guest touches: a fault in a mapped file also reads the
 * pages around it (`read_ahead_kb` of the disk, up to megabytes). If a process maps the memory file
 * and its /proc/PID/pagemap is readable, only the pages that it mapped are recorded; read faults
 * still map up to 15 neighbours each (fault-around). Disk images cannot be filtered in this way.
 *
 * A thread takes a sample every `intervalMs`, or less often if a sample takes long. Needs no
 * privilege, but the files must belong to this process's user or be writable by it, or the kernel
 * hides their residency.
 *
 * @throws TypeError for invalid options.
 * @throws ReapTraceError
 * - `ERR_PAGE_CACHE`: `check` is `mapped` (another process maps a file, which prevents its
 *   eviction), `stays` (it cannot be evicted, as on tmpfs) or `hidden` (the kernel hides residency
 *   from this user),
 * - `ERR_SOURCE_READ`: a file cannot be opened, is empty, or is not a regular file.
 *
 * @example
 * const snapshot = { memoryFile, diskImages: ['rootfs.img'] }
 * const recording = await recordPageCache({ snapshot })
 * // restore the VM with its File backend and invoke it once
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
  // `offset` is the index of the file.
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
    const stopped = await native().stopRecording(this.#recorder)
    if (isFailure(stopped)) throw toError(stopped, {})
    const [cached, mapped, figures] = stopped
    const [pid = 0, errno = 0, lookCount = 0, longestGapUs = 0] = figures
    const inCache = this.#sizes.map((size, file) => traceOf(cached, file, size))
    const trace = pid > 0 ? traceOf(mapped, 0, this.#sizes[0]!) : inCache[0]!
    if (pid === 0 && errno !== 0) {
      report(this.#listener, warning(pageTableHidden(errno)))
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
      hint: 'Record as the user that runs the VMM, or as root. Otherwise the record includes read-ahead.',
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
