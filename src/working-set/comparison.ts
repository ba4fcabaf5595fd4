import type { BigIntStats } from 'node:fs'
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { compareFiles } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { ioError } from '../files.js'
import { PAGE } from '../page.js'
import { checkSize, statMemoryFile } from '../snapshot/disk-image.js'
import {
  type FileStamp,
  isSettledFile,
  keepsTimes,
  keyOfStamp,
  stampKey,
  stampOf,
  statFile,
  untilSettled,
} from '../snapshot/file-stamp.js'
import { checkShape, readError } from '../snapshot/memory-file.js'
import type { WorkingSetFile } from './file/facts.js'
import type { Progress } from './file/write.js'
import { type Finding, findingOf, remember } from './findings.js'

/** A page whose bytes in the working set and the memory file differ. */
export interface Mismatch {
  /** Number of the 4 KiB page. */
  readonly page: number
  /** Offset of the page in the memory file. */
  readonly offset: number
}

/** Result of a full comparison. */
export interface VerifyResult {
  /** Number of 4 KiB pages compared: all of the set, zero pages included. */
  readonly pageCount: number
  readonly identical: boolean
  /** Number of pages that differ. */
  readonly mismatchedPageCount: number
  /** First 16 pages that differ, in file order. */
  readonly mismatches: readonly Mismatch[]
  /**
   * Whether the result is saved on this host, so that the next restore, in any process, need not
   * compare. False if the folder for results cannot be used (`reap-trace doctor` checks it), if a
   * file changed during the comparison or may have a writer and is younger than 70 s, or if the
   * timestamps of the memory file do not reveal every change (tmpfs, FUSE, network file systems).
   */
  readonly remembered: boolean
}

export interface ComparisonOptions {
  /**
   * `idle` compares with idle priority, `soon` at once. Both first wait for the clock tick after
   * which the files' timestamps reveal the next write; `now` does not wait, so its result may not
   * be remembered.
   */
  readonly when: 'idle' | 'soon' | 'now'
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

/** A comparison, and the file states for which it holds. */
export interface ComparedFiles {
  readonly result: VerifyResult
  /** `undefined` if the stamps might not reveal a later write. */
  readonly states: { readonly memory: FileStamp; readonly set: FileStamp } | undefined
}

/**
 * Compares every page of a working-set file with the memory file on a separate thread, and
 * remembers the result.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size,
 * - `ERR_WORKING_SET_INVALID`: the file's data is damaged, or it was modified since it was read,
 * - `ERR_SOURCE_READ`, `ERR_WORKING_SET_IO`: one of the files cannot be read.
 * @throws the reason of `signal` when it aborts.
 */
export async function compareWithMemory(
  set: WorkingSetFile,
  memoryPath: string,
  { when, signal, onProgress }: ComparisonOptions,
): Promise<ComparedFiles> {
  signal?.throwIfAborted()
  await using memory = await OpenFile.open(memoryPath, (error) => readError(memoryPath, error))
  await using file = await OpenFile.open(set.path, (error) =>
    ioError('working-set file', 'read', set.path, error),
  )
  const [memoryStats, setStats] = [await memory.stat(), await file.stat()]
  checkShape(memoryPath, memoryStats)
  checkSize(memoryPath, Number(memoryStats.size), set.memoryBytes)
  if (stampKey(setStats) !== keyOfStamp(set.stamp)) throw modified(set.path)

  const isOldEnough = when === 'now' ? isSettledFile : untilSettled
  const wereSettled =
    (await keepsTimes(memoryPath)) &&
    (await isOldEnough(memory.fd, memoryStats)) &&
    (await isOldEnough(file.fd, setStats))
  const totalPages = set.dataPages + set.zeroPages
  const [pageCount, mismatchedPageCount, mismatches] = await compareFiles(
    { path: set.path, fd: file.fd, set: set.tables },
    { path: memoryPath, fd: memory.fd },
    {
      background: when === 'idle',
      signal,
      onProgress:
        onProgress && ((pageCount) => onProgress({ pageCount, totalPageCount: totalPages })),
    },
  )
  const areUnchanged =
    stampKey(await memory.stat()) === stampKey(memoryStats) &&
    stampKey(await file.stat()) === stampKey(setStats)
  const holds = wereSettled && areUnchanged
  const states = holds ? { memory: stampOf(memoryStats), set: set.stamp } : undefined
  const found = { mismatchedPageCount, mismatches: Array.from(mismatches) }
  const finding = { memoryFile: memoryPath, how: 'compared', ...found } as const
  // A comparison before a restore does not wait for the result to be saved.
  const kept = states ? remember(set, states.memory, finding, () => memory.sync()) : false
  return { result: resultOf(pageCount, found, when !== 'now' && (await kept)), states }
}

const resultOf = (
  pageCount: number,
  { mismatchedPageCount, mismatches }: Pick<Finding, 'mismatchedPageCount' | 'mismatches'>,
  remembered: boolean,
): VerifyResult => ({
  pageCount,
  identical: mismatchedPageCount === 0,
  mismatchedPageCount,
  mismatches: mismatches.map((page) => ({ page, offset: page * PAGE })),
  remembered,
})

/**
 * Results for memory files whose timestamps do not reveal every change; valid in this process only.
 */
const notRemembered = new LRUCache<string, VerifyResult>({ max: 256 })

/** {@link compareWithMemory}, unless the files were already compared in their current states. */
export async function compareOnce(
  set: WorkingSetFile,
  memoryPath: string,
  options: ComparisonOptions,
): Promise<ComparedFiles> {
  const memory = stampOf(await statMemoryFile(memoryPath))
  if ((await stampAt(set.path)) !== keyOfStamp(set.stamp)) throw modified(set.path)
  const finding = await findingOf(set, memory)
  if (finding) {
    const result = resultOf(set.dataPages + set.zeroPages, finding, true)
    return { result, states: { memory, set: set.stamp } }
  }
  const pair = [set.stamp, memory].join(':')
  const before = notRemembered.get(pair)
  if (before) return { result: before, states: undefined }
  const compared = await compareWithMemory(set, memoryPath, options)
  // Files that were too young or had writers are compared again: that result may be saved.
  if (!(await keepsTimes(memoryPath))) notRemembered.set(pair, compared.result)
  return compared
}

/**
 * End of the last background comparison: they run one at a time, since they share cores and disk.
 */
let lastTurn: Promise<unknown> = Promise.resolve()

/** {@link compareOnce} with idle priority, one at a time. */
export function compareInBackground(
  set: WorkingSetFile,
  memoryPath: string,
  signal: AbortSignal | undefined,
): Promise<VerifyResult> {
  const turn = lastTurn.then(async () => {
    signal?.throwIfAborted()
    return (await compareOnce(set, memoryPath, { when: 'idle', signal })).result
  })
  lastTurn = turn.catch(() => {})
  return turn
}

/** The error for a set whose bytes differ from the memory file. */
export function staleError(
  setPath: string,
  memoryFile: string,
  mismatchedPages: number,
): ReapTraceError {
  const pages = mismatchedPages === 1 ? '1 page' : `${mismatchedPages} pages`
  const differ = mismatchedPages === 1 ? 'differs' : 'differ'
  return new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set ${setPath} is stale: ${pages} of it ${differ} from ${memoryFile}`,
    {
      path: setPath,
      check: 'stale',
      hint: "Record it again from this snapshot, or rewrite it with onStaleWorkingSet: 'rewrite' (--on-stale-working-set rewrite).",
    },
  )
}

async function stampAt(path: string): Promise<string> {
  const stats = await statFile(path).catch((error: unknown) => {
    throw ioError('working-set file', 'read', path, error)
  })
  return stampKey(stats)
}

export const modified = (path: string) =>
  new ReapTraceError('ERR_WORKING_SET_INVALID', `${path} was modified since it was read`, {
    path,
    check: 'changed',
    hint: 'Read it again.',
  })

class OpenFile {
  readonly #file: FileHandle
  readonly #explain: (error: unknown) => unknown

  private constructor(file: FileHandle, explain: (error: unknown) => unknown) {
    this.#file = file
    this.#explain = explain
  }

  static async open(path: string, explain: (error: unknown) => unknown): Promise<OpenFile> {
    try {
      // Without O_NONBLOCK, opening a named pipe would wait for a writer.
      const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
      return new OpenFile(file, explain)
    } catch (error) {
      throw explain(error)
    }
  }

  get fd(): number {
    return this.#file.fd
  }

  stat(): Promise<BigIntStats> {
    return this.#file.stat({ bigint: true }).catch((error: unknown) => {
      throw this.#explain(error)
    })
  }

  /** Writes the dirty pages of the file to the disk. */
  sync(): Promise<void> {
    return this.#file.datasync()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }
}
