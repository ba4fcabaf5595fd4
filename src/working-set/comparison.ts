import type { BigIntStats } from 'node:fs'
import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
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
  /** Where it begins in the memory file. */
  readonly offset: number
}

/** What a full comparison found. */
export interface VerifyResult {
  /** Number of 4 KiB pages compared: all of the set, also the zero ones. */
  readonly pageCount: number
  readonly identical: boolean
  /** Number of `pages` that differ. */
  readonly mismatchedPageCount: number
  /** The first 16 of them in the order of the file. */
  readonly mismatches: readonly Mismatch[]
  /**
   * Whether the result is kept on this host, so that the next restore need not compare, in whichever
   * process. False where the folder for results cannot be used (`reap-trace doctor` checks it), where a
   * file changed meanwhile, may have a writer and is younger than 70 s, or where no time tells of every
   * change of the memory file (tmpfs, FUSE, network file systems).
   */
  readonly remembered: boolean
}

export interface ComparisonOptions {
  /**
   * `idle` reads and compares when nothing else wants the core, `soon` at once. Both wait for the tick
   * of the clock after which the times of the files tell of the next write; `now` does not, and its
   * result may not be remembered.
   */
  readonly when: 'idle' | 'soon' | 'now'
  readonly signal?: AbortSignal | undefined
  readonly onProgress?: ((progress: Progress) => void) | undefined
}

/** A comparison, and the states of the files in which it holds. */
export interface ComparedFiles {
  readonly result: VerifyResult
  /** `undefined` where a later write might not show. */
  readonly states: { readonly memory: FileStamp; readonly set: FileStamp } | undefined
}

/**
 * Compares every page of a working-set file with the memory file on its own thread, and remembers
 * the result.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the memory file has another size,
 * - `ERR_WORKING_SET_INVALID`: the file's data is damaged, or it was written to since it was read,
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
    ioError('working set', 'read', set.path, error),
  )
  const [memoryStats, setStats] = [await memory.look(), await file.look()]
  checkShape(memoryPath, memoryStats)
  checkSize(memoryPath, Number(memoryStats.size), set.memoryBytes)
  if (stampKey(setStats) !== keyOfStamp(set.stamp)) throw writtenTo(set.path)

  const isOldEnough = when === 'now' ? isSettledFile : untilSettled
  const wereSettled =
    (await keepsTimes(memoryPath)) &&
    (await isOldEnough(memory.fd, memoryStats)) &&
    (await isOldEnough(file.fd, setStats))
  const totalPages = set.dataPages + set.zeroPages
  const [pages, mismatchedPages, mismatches] = await compareFiles(
    { path: set.path, fd: file.fd, set: set.tables },
    { path: memoryPath, fd: memory.fd },
    {
      background: when === 'idle',
      signal,
      onProgress:
        onProgress && ((pages) => onProgress({ pageCount: pages, totalPageCount: totalPages })),
    },
  )
  const areUnchanged =
    stampKey(await memory.look()) === stampKey(memoryStats) &&
    stampKey(await file.look()) === stampKey(setStats)
  const holds = wereSettled && areUnchanged
  const states = holds ? { memory: stampOf(memoryStats), set: set.stamp } : undefined
  const found = { mismatchedPageCount: mismatchedPages, mismatches: Array.from(mismatches) }
  const finding = { memoryFile: memoryPath, how: 'compared', ...found } as const
  // Before a restore nobody waits until others can know.
  const kept = states ? remember(set, states.memory, finding, () => memory.sync()) : false
  return { result: resultOf(pages, found, when !== 'now' && (await kept)), states }
}

const resultOf = (
  pages: number,
  {
    mismatchedPageCount: mismatchedPages,
    mismatches,
  }: Pick<Finding, 'mismatchedPageCount' | 'mismatches'>,
  remembered: boolean,
): VerifyResult => ({
  pageCount: pages,
  identical: mismatchedPages === 0,
  mismatchedPageCount: mismatchedPages,
  mismatches: mismatches.map((page) => ({ page, offset: page * PAGE })),
  remembered,
})

/** Pairs whose memory file's times do not tell of every change, so that not every restore compares them. */
const notRemembered = new LRUCache<string, VerifyResult>({ max: 256 })

/** {@link compareWithMemory}, unless files in these states were compared before. */
export async function compareOnce(
  set: WorkingSetFile,
  memoryPath: string,
  options: ComparisonOptions,
): Promise<ComparedFiles> {
  const memory = stampOf(await statMemoryFile(memoryPath))
  // What is known of the set is not what its file holds now.
  if ((await stampAt(set.path)) !== keyOfStamp(set.stamp)) throw writtenTo(set.path)
  const finding = await findingOf(set, memory)
  if (finding) {
    const result = resultOf(set.dataPages + set.zeroPages, finding, true)
    return { result, states: { memory, set: set.stamp } }
  }
  const pair = [set.stamp, memory].join(':')
  const before = notRemembered.get(pair)
  if (before) return { result: before, states: undefined }
  const compared = await compareWithMemory(set, memoryPath, options)
  // Not of files that were too young, or had writers: the next comparison may be remembered.
  if (!(await keepsTimes(memoryPath))) notRemembered.set(pair, compared.result)
  return compared
}

/** The end of the last comparison in the background: they take turns, as they share cores and disk. */
let lastTurn: Promise<unknown> = Promise.resolve()

/** {@link compareOnce} when nothing else wants the core, one at a time. */
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

/** The error of a set whose bytes are not those of the memory file. */
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
  const stats = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw ioError('working set', 'read', path, error)
  })
  return stampKey(stats)
}

const writtenTo = (path: string) =>
  new ReapTraceError('ERR_WORKING_SET_INVALID', `${path} was written to since it was read`, {
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
      // Without O_NONBLOCK the open of a named pipe would wait for somebody to write to it.
      const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
      return new OpenFile(file, explain)
    } catch (error) {
      throw explain(error)
    }
  }

  get fd(): number {
    return this.#file.fd
  }

  look(): Promise<BigIntStats> {
    return this.#file.stat({ bigint: true }).catch((error: unknown) => {
      throw this.#explain(error)
    })
  }

  /** Writes what the page cache has of the file to the disk. */
  sync(): Promise<void> {
    return this.#file.datasync()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close()
  }
}
