import { type NativeWorkingSet, native, openFiles, type WorkingSetFacts } from '../binding/addon.js'
import { checkOptions, type OptionRule, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { compareWithMemory, type VerifyResult } from './comparison.js'
import {
  checkDiskRuns,
  type DiskFacts,
  type DiskWorkingSet,
  listDisks,
  mergeDisks,
} from './disks.js'
import { type Extent, mergeExtents } from './extents.js'
import { describeFile, type WorkingSetFile } from './file/facts.js'
import { MAX_DISKS, type Manifest } from './file/format.js'
import { type Progress, takeDisks, writeWorkingSetFile } from './file/write.js'
import { listFindings, type WorkingSetFinding } from './findings.js'
import { type SetInternals, setInternals } from './internals.js'
import { runLengths, type WorkingSetSummary } from './summary.js'
import { mergeTraces, separate, Trace, type TraceFields, touchesOf } from './trace.js'

export type { Mismatch, VerifyResult } from './comparison.js'
export type { DiskExtent, DiskWorkingSet } from './disks.js'
export type { Extent } from './extents.js'
export type { Manifest } from './file/format.js'
export type { Progress } from './file/write.js'
export type { WorkingSetFinding } from './findings.js'
export { Trace, type TraceFields } from './trace.js'

export interface MergeOptions {
  /**
   * Pages are kept that at least this many traces have.
   * @default the number of traces
   */
  readonly minRuns?: number | undefined
  /**
   * What was read of disk images, up to 16: for each image a trace of each run, in pages of 4096
   * bytes of the image. Their `memoryBytes` is the image's size, rounded up to a multiple of 4096, and
   * their times are on the clock of the run's other trace.
   * @default no disks
   */
  readonly disks?: readonly (readonly (Trace | TraceFields)[])[] | undefined
}

export interface WriteOptions {
  /**
   * The snapshot that the traces were recorded on: the pages' bytes come from its memory file. It needs
   * a disk image for each of the set's `disks`, in their order, with the content that it has when a VM is
   * restored. The file keeps its `id`.
   */
  readonly snapshot: Snapshot
  /** Text for people that the file's manifest keeps, up to 1024 characters. */
  readonly label?: string | undefined
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

const count = (least: number, most: number) => ({
  expected: `an integer from ${least} to ${most}`,
  accepts: (value: unknown) =>
    rules.count.accepts(value) && (value as number) >= least && (value as number) <= most,
})

const diskTraces = {
  expected: `an array of up to ${MAX_DISKS} arrays of traces`,
  accepts: (value: unknown) =>
    Array.isArray(value) && value.length <= MAX_DISKS && value.every(Array.isArray),
}

const label = {
  expected: 'a string of up to 1024 characters',
  accepts: (value: unknown) => typeof value === 'string' && value.length <= 1024,
}

/**
 * The pages worth having before the guest asks for them, in the order in which it will.
 *
 * Immutable. One from {@link WorkingSet.fromTraces} has places but no bytes; {@link WorkingSet.write}
 * brings both together in a file, and one that is {@link WorkingSet.read} from there can be served.
 */
export class WorkingSet {
  /** Bytes in a page of the guest that was recorded: 4096 or 2097152. */
  readonly pageSize: number
  /** Size of the guest's memory, and so of the memory file. */
  readonly memoryBytes: number
  /** How many runs it was made of. */
  readonly runCount: number
  /** How many pages of 4 KiB, whatever `pageSize` is. */
  readonly pageCount: number
  readonly #internals: SetInternals
  #order: Trace | undefined
  #extents: readonly Extent[] | undefined
  #disks: readonly DiskWorkingSet[] | undefined

  private constructor(source: MergedRuns | ReadSet) {
    const { pageSize, memoryBytes } = 'order' in source ? source.order : source.facts
    this.pageSize = pageSize
    this.memoryBytes = memoryBytes
    if ('order' in source) {
      this.runCount = source.runs
      this.#order = source.order
      this.pageCount = (source.order.pages.length * pageSize) / PAGE
      this.#internals = internalsOfRuns(source)
    } else {
      const { facts, file } = source
      this.runCount = facts.runs
      this.pageCount = file.dataPages + file.zeroPages
      this.#internals = {
        handle: file.tables,
        file,
        disks: file.disks,
        get diskTouches() {
          return native().touchesOf(file.tables)[1]
        },
      }
    }
    setInternals(this, this.#internals)
  }

  /**
   * Merges runs of the same snapshot. Keeps the pages that `minRuns` of them have, each at the median
   * of its places in those runs.
   *
   * @throws TypeError when there is no trace, the traces differ in `memoryBytes` or `pageSize`,
   * `minRuns` is not between 1 and their number, or a disk has not a trace of each run.
   */
  static fromTraces(traces: Iterable<Trace | TraceFields>, options: MergeOptions = {}): WorkingSet {
    const [first, ...rest] = Array.from(traces, asTrace)
    if (first === undefined) throw new TypeError('Expected at least one trace, got none')
    const all = [first, ...rest] as const
    for (const trace of all) {
      for (const field of ['memoryBytes', 'pageSize'] as const) {
        if (trace[field] === first[field]) continue
        throw new TypeError(
          `Expected traces of one snapshot, got ${field} ${first[field]} and ${trace[field]}`,
        )
      }
    }
    checkOptions('WorkingSet.fromTraces()', options, {
      minRuns: count(1, all.length),
      disks: diskTraces,
    })
    const minRuns = options.minRuns ?? all.length
    const disks = (options.disks ?? []).map((runs) => Array.from(runs, asTrace))
    const diskRuns = checkDiskRuns(disks, all.length)
    return new WorkingSet({
      order: mergeTraces([...all], minRuns),
      runs: all.length,
      ...mergeDisks(diskRuns, minRuns),
    })
  }

  /**
   * Reads the header and index of a working-set file, not its data, and checks every rule of the
   * format.
   *
   * @throws ReapTraceError
   * - `ERR_WORKING_SET_INVALID`: a rule is broken; `check` names it and `offset` the place,
   * - `ERR_WORKING_SET_IO`: the file cannot be opened or read.
   */
  static async read(path: string): Promise<WorkingSet> {
    checkOptions('WorkingSet.read()', { path }, { path: required(rules.path) })
    const { set, facts, files } = await openFiles('', path)
    native().closeFiles(files)
    return WorkingSet.fromFile(path, set!, facts!)
  }

  /** @internal */
  static fromFile(path: string, tables: NativeWorkingSet, facts: WorkingSetFacts): WorkingSet {
    return new WorkingSet({ facts, file: describeFile(path, tables, facts) })
  }

  get bytes(): number {
    return this.pageCount * PAGE
  }

  /**
   * The guest's pages in first-touch order, in units of `pageSize`. With several runs merged, its
   * times need not rise.
   */
  get order(): Trace {
    // A restore has no use for it, so that reading a file does not wait for it.
    this.#order ??= orderOf(this, this.#internals.handle)
    return this.#order
  }

  /** Share of the pages that the guest changes, from 0 to 1; `undefined` where nobody looked. */
  get writtenShare(): number | undefined {
    return this.#internals.file ? this.#internals.file.writtenShare : this.#order!.writtenShare
  }

  /** The pages as runs, by address. */
  get extents(): readonly Extent[] {
    this.#extents ??= Object.freeze(mergeExtents(this.order))
    return this.#extents
  }

  /** The disk images that were read, with their pages; empty when there are none. */
  get disks(): readonly DiskWorkingSet[] {
    this.#disks ??= listDisks(this.#internals.disks, this.#internals.diskTouches)
    return this.#disks
  }

  /** What the file says of itself; `undefined` when this is not from a file. */
  get manifest(): Manifest | undefined {
    return this.#internals.file?.manifest
  }

  /**
   * Writes a working-set file with the bytes of the pages, taken from the memory file. Of disk
   * images it has places, and no bytes.
   *
   * The file takes the place of one that is there only when it is complete and on the disk. It is
   * readable by its owner alone (mode 0600): it holds guest memory.
   *
   * @returns what the file says of itself.
   * @throws TypeError for options that make no sense, or when `path` is the memory file or a disk
   * image.
   * @throws ReapTraceError
   * - `ERR_SNAPSHOT_MISMATCH`: the memory file or a disk image has another size than the traces say,
   * - `ERR_SOURCE_READ`: it cannot be read, or the memory file changed meanwhile,
   * - `ERR_WORKING_SET_IO`: the file cannot be written (no space, no permission).
   * @throws the reason of `signal` when it aborts.
   */
  async write(path: string, options: WriteOptions): Promise<Manifest> {
    checkOptions('WorkingSet.write()', { path }, { path: required(rules.path) })
    checkOptions('WorkingSet.write()', options, {
      snapshot: snapshotRule,
      label,
      signal: rules.signal,
      onProgress: rules.callback,
    })
    const { snapshot, signal, onProgress } = options
    checkSnapshot('WorkingSet.write()', snapshot)
    const { diskImages = [] } = snapshot
    const diskCount = this.#internals.disks.length
    if (diskImages.length !== diskCount) {
      throw new TypeError(
        `Expected ${diskCount} diskImages in the snapshot of WorkingSet.write(), one for each of the set's disks, got ${diskImages.length}`,
      )
    }
    const { order, runCount: runs } = this
    return writeWorkingSetFile(path, {
      order,
      runs,
      snapshot,
      disks: await takeDisks(path, this.#internals, diskImages),
      diskTouches: this.#internals.diskTouches,
      replaces: undefined,
      label: options.label,
      signal,
      onProgress,
    })
  }

  /**
   * Compares every page of the file with the memory file, those of zeros too, and remembers the
   * result on this host: restores of an identical pair install the set's own bytes from then on.
   *
   * @throws TypeError when this working set is not from a file.
   * @throws ReapTraceError
   * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size,
   * - `ERR_WORKING_SET_INVALID`: the file's data is damaged (`check` is `group-checksum`), or it was
   *   written to since it was read (`changed`),
   * - `ERR_SOURCE_READ`, `ERR_WORKING_SET_IO`: one of the files cannot be read.
   * @throws the reason of `signal` when it aborts.
   */
  async verify(snapshot: Snapshot, options: VerifyOptions = {}): Promise<VerifyResult> {
    checkSnapshot('WorkingSet.verify()', snapshot)
    checkOptions('WorkingSet.verify()', options, {
      signal: rules.signal,
      onProgress: rules.callback,
    })
    const { file } = this.#internals
    if (!file) throw new TypeError('verify() needs a working set that was read from a file')
    const { result } = await compareWithMemory(file, snapshot.memoryFile, {
      when: 'soon',
      ...options,
    })
    return result
  }

  /**
   * Results of writes and comparisons of this file on this host, the newest first, as long as the file is
   * unchanged. Empty for a working set that is not from a file.
   */
  async findings(): Promise<readonly WorkingSetFinding[]> {
    const { file } = this.#internals
    return file ? listFindings(file) : []
  }

  /** The working set in numbers, for people and tools. */
  describe(): WorkingSetSummary {
    const { pageSize, memoryBytes, runCount, pageCount, bytes, extents } = this
    const { file } = this.#internals
    const disks = this.disks.map(({ extents, ...disk }) => ({
      ...disk,
      extentCount: extents.length,
    }))
    return {
      pageSize,
      memoryBytes,
      runCount,
      pageCount,
      bytes,
      share: bytes / memoryBytes,
      extentCount: extents.length,
      runLengths: runLengths(extents),
      lastTouchUs: this.order.timesUs.reduce((last, time) => Math.max(last, time), 0),
      ...(disks.length > 0 && { disks }),
      ...(file && {
        file: {
          path: file.path,
          id: Buffer.from(file.id).toString('hex'),
          fileBytes: file.fileBytes,
          groupCount: file.groupCount,
          extentCount: file.extentCount,
          dataPageCount: file.dataPages,
          zeroPageCount: file.zeroPages,
          manifest: file.manifest,
        },
      }),
    }
  }
}

/** A trace that came from a worker has lost its class. */
const asTrace = (trace: Trace | TraceFields): Trace =>
  trace instanceof Trace ? trace : new Trace({ ...trace })

/** What a working set of traces is made of. */
interface MergedRuns {
  readonly order: Trace
  readonly runs: number
  readonly disks: readonly DiskFacts[]
  readonly diskTouches: Uint32Array
}

/** What a working set from a file is made of. */
interface ReadSet {
  readonly facts: WorkingSetFacts
  readonly file: WorkingSetFile
}

/** Without a restore the engine has no use for the set, and need not load. */
function internalsOfRuns({ order, disks, diskTouches }: MergedRuns): SetInternals {
  let handle: NativeWorkingSet | undefined
  return {
    get handle() {
      const { memoryBytes, pageSize } = order
      const counts = Uint32Array.from(disks, ({ pages }) => pages)
      handle ??= native().makeWorkingSet(
        memoryBytes,
        pageSize,
        touchesOf(order),
        counts,
        diskTouches,
      )
      return handle
    },
    file: undefined,
    disks,
    diskTouches,
  }
}

function orderOf(
  { pageSize, memoryBytes, writtenShare }: Pick<Trace, 'pageSize' | 'memoryBytes' | 'writtenShare'>,
  handle: NativeWorkingSet,
): Trace {
  const [touches] = native().touchesOf(handle)
  return new Trace({
    pageSize,
    memoryBytes,
    writtenShare,
    ...separate(touches, pageSize / PAGE),
  })
}

/** The option `workingSet`. */
export const workingSetRule: OptionRule = {
  expected: 'a WorkingSet or the path of a working-set file',
  accepts: (value) => value instanceof WorkingSet || rules.path.accepts(value),
}
