import { type NativeWorkingSet, native, openFiles, type WorkingSetFacts } from '../binding/addon.js'
import { checkOptions, type OptionRule, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { compareWithMemory, type VerifyResult } from './comparison.js'
import { type DiskWorkingSet, listDisks } from './disks.js'
import { type Extent, mergeExtents } from './extents.js'
import { describeFile, type WorkingSetFile } from './file/facts.js'
import type { Manifest } from './file/format.js'
import { type Progress, takeDisks, writeWorkingSetFile } from './file/write.js'
import { listFindings, type WorkingSetFinding } from './findings.js'
import { type SetInternals, setInternals } from './internals.js'
import { type MergedRuns, type MergeOptions, mergeRuns } from './merge.js'
import { findReadCost, type ReadCost } from './read-cost.js'
import { runLengths, type WorkingSetSummary } from './summary.js'
import {
  type ReadOptions,
  readRules,
  separate,
  Trace,
  type TraceFields,
  touchesOf,
} from './trace.js'

export type { Mismatch, VerifyResult } from './comparison.js'
export type { DiskExtent, DiskWorkingSet } from './disks.js'
export type { Extent } from './extents.js'
export type { Manifest } from './file/format.js'
export type { Progress } from './file/write.js'
export type { WorkingSetFinding } from './findings.js'
export type { MergeOptions } from './merge.js'
export { type ReadOptions, Trace, type TraceFields } from './trace.js'

/** Options of {@link WorkingSet.write}. */
export interface WriteOptions {
  /**
   * The recorded snapshot: the pages' bytes come from its memory file. It must have one disk image
   * for each of the set's `disks`, in the same order, with the same content as at a restore. The
   * file stores its `id`.
   */
  readonly snapshot: Snapshot
  /** Description stored in the file's manifest, at most 1024 characters. */
  readonly label?: string | undefined
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

/** Options of {@link WorkingSet.verify}. */
export interface VerifyOptions {
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

const label = {
  expected: 'a string of up to 1024 characters',
  accepts: (value: unknown) => typeof value === 'string' && value.length <= 1024,
}

/**
 * Pages to prefetch, in the order in which the guest touches them. Immutable.
 *
 * {@link WorkingSet.fromTraces} creates a set without bytes, {@link WorkingSet.write} writes its
 * pages and their bytes to a file, and {@link WorkingSet.read} reads that file.
 */
export class WorkingSet {
  /** Page size of the recorded guest in bytes: 4096 or 2097152. */
  readonly pageSize: number
  /** Size of the guest's memory, and of the memory file, in bytes. */
  readonly memoryBytes: number
  /** Number of runs merged. */
  readonly runCount: number
  /** Number of 4 KiB pages, whatever `pageSize` is. */
  readonly pageCount: number
  readonly #internals: SetInternals
  #order: Trace | undefined
  #extents: readonly Extent[] | undefined
  #disks: readonly DiskWorkingSet[] | undefined

  private constructor(source: MergedRuns | ReadSet) {
    if (source === undefined || !('order' in source || 'facts' in source)) {
      throw new TypeError('Create a WorkingSet by WorkingSet.fromTraces() or WorkingSet.read()')
    }
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
   * Merges runs of the same snapshot. Keeps the pages that occur in at least `minRuns` of them,
   * sorted by their median rank.
   *
   * @throws TypeError without traces, for traces that differ in `memoryBytes` or `pageSize`, if
   * `minRuns` is not between 1 and their number, or if a disk does not have one trace per run.
   */
  static fromTraces(traces: Iterable<Trace | TraceFields>, options: MergeOptions = {}): WorkingSet {
    return new WorkingSet(mergeRuns(traces, options))
  }

  /**
   * Reads the header and index of a working-set file, not its data, and checks every rule of the
   * format.
   *
   * @throws ReapTraceError
   * - `ERR_WORKING_SET_INVALID`: a rule is broken; `check` and `offset` say which and where,
   * - `ERR_WORKING_SET_IO`: the file cannot be opened or read,
   * - `ERR_UNTRUSTED_FILE`: another user may write to it.
   */
  static async read(path: string, options: ReadOptions = {}): Promise<WorkingSet> {
    checkOptions('WorkingSet.read()', { path }, { path: required(rules.path) }, 'argument')
    checkOptions('WorkingSet.read()', options, readRules)
    const { trust = false } = options
    const { set, facts, files } = await openFiles('', path, { isTrusted: trust })
    native().closeFiles(files)
    return WorkingSet.fromFile(path, set!, facts!, trust)
  }

  /** @internal */
  static fromRuns(runs: MergedRuns): WorkingSet {
    return new WorkingSet(runs)
  }

  /** @internal */
  static fromFile(
    path: string,
    tables: NativeWorkingSet,
    facts: WorkingSetFacts,
    isTrusted: boolean,
  ): WorkingSet {
    return new WorkingSet({ facts, file: describeFile(path, tables, facts, isTrusted) })
  }

  /** Size of the pages in bytes. */
  get bytes(): number {
    return this.pageCount * PAGE
  }

  /**
   * The guest's pages in first-touch order, in units of `pageSize`. If several runs were merged,
   * times need not increase.
   */
  get order(): Trace {
    // Computed on demand, since a restore does not need it.
    this.#order ??= orderOf(this, this.#internals.handle)
    return this.#order
  }

  /** Share of the pages that the guest modifies, from 0 to 1; `undefined` if unknown. */
  get writtenShare(): number | undefined {
    return this.#internals.file ? this.#internals.file.writtenShare : this.#order!.writtenShare
  }

  /** The pages as runs, sorted by address. */
  get extents(): readonly Extent[] {
    this.#extents ??= Object.freeze(mergeExtents(this.order))
    return this.#extents
  }

  /** The disk images with pages to prefetch. */
  get disks(): readonly DiskWorkingSet[] {
    this.#disks ??= listDisks(this.#internals.disks, this.#internals.diskTouches)
    return this.#disks
  }

  /** Manifest of the file; `undefined` for a set without a file. */
  get manifest(): Manifest | undefined {
    return this.#internals.file?.manifest
  }

  /**
   * Writes a working-set file with the bytes of the pages, read from the memory file. Of disk
   * images, the file holds page numbers but no bytes.
   *
   * An existing file is replaced only once the new one is complete and on the disk. The file is
   * readable by its owner alone (mode 0600), since it holds guest memory.
   *
   * @returns the manifest of the file.
   * @throws TypeError for invalid options, or if `path` is the memory file or a disk image.
   * @throws ReapTraceError
   * - `ERR_SNAPSHOT_MISMATCH`: the size of the memory file or of a disk image differs from the
   *   traces,
   * - `ERR_SOURCE_READ`: one of them cannot be read, or the memory file changed during the write,
   * - `ERR_WORKING_SET_IO`: the file cannot be written (no space, no permission).
   * @throws the reason of `signal` when it aborts.
   */
  async write(path: string, options: WriteOptions): Promise<Manifest> {
    checkOptions('WorkingSet.write()', { path }, { path: required(rules.path) }, 'argument')
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
   * Compares every page of the file with the memory file, zero pages included, and remembers the
   * result on this host: later restores of an identical pair install the bytes of the working-set
   * file.
   *
   * @throws TypeError for a working set without a file.
   * @throws ReapTraceError
   * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size,
   * - `ERR_WORKING_SET_INVALID`: the file's data is damaged (`check` is `group-checksum`), or it
   *   was modified since it was read (`changed`),
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
   * Results of writes and comparisons of the unchanged file on this host, the newest first. Empty
   * for a working set without a file.
   */
  async findings(): Promise<readonly WorkingSetFinding[]> {
    const { file } = this.#internals
    return file ? listFindings(file) : []
  }

  /**
   * Finds what a restore would have to read for the set now: which of its bytes are in the page
   * cache, and how long the disk takes for the others. Leaves the page cache as it is.
   *
   * @param memoryFile path of the memory file, to look at it too.
   * @throws ReapTraceError
   * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size,
   * - `ERR_WORKING_SET_INVALID`: the file was modified since it was read (`check` is `changed`),
   * - `ERR_SOURCE_READ`, `ERR_WORKING_SET_IO`: one of the files cannot be opened.
   */
  async readCost(memoryFile?: string): Promise<ReadCost> {
    checkOptions('readCost()', { memoryFile }, { memoryFile: rules.path }, 'argument')
    return findReadCost(this.#internals, this.memoryBytes, memoryFile)
  }

  /** Statistics of the working set. */
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

/** Source of a working set read from a file. */
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
