import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { ReapTraceError } from '../errors.js'
import { ioError } from '../files.js'
import { checkOptions, required, rules } from '../options.js'
import type { PageCachePrefetchResult } from '../page-cache/prefetch.js'
import type { FaultStats, PrefetchResult, ServeResult } from '../uffd/fault-handler.js'
import type { SessionTimes, Timeline } from '../uffd/timing.js'
import { checkRecord, Mismatch } from './record-shape.js'

/** Times of a restore, in milliseconds of CLOCK_MONOTONIC. */
export interface RestoreTimes extends Partial<SessionTimes> {
  /** Time at which the restore was asked for. */
  readonly started: number
  /** Begin of the command that loads the snapshot. */
  readonly commandStarted?: number | undefined
  readonly commandEnded?: number | undefined
}

/** What one restore did and when, as `reap-trace restore --trace` writes it. */
export interface RestoreRecord {
  readonly version: 1
  /** Date and time of the restore: ISO 8601, UTC. */
  readonly date: string
  readonly backend: 'uffd' | 'page-cache'
  readonly snapshot: {
    readonly memoryFile: string
    readonly memoryBytes: number
    readonly pageSize: number
  }
  /** The working set that was prefetched. */
  readonly workingSet?: { readonly path: string; readonly pageCount: number } | undefined
  readonly times: RestoreTimes
  readonly prefetch?: PrefetchResult | PageCachePrefetchResult | undefined
  /** Figures at the end; absent for the page cache, whose faults the kernel serves. */
  readonly stats?: FaultStats | undefined
  /** Figures at the application's mark. */
  readonly statsAtReady?: FaultStats | undefined
  readonly timeline?: Timeline | undefined
  readonly state?: ServeResult['state'] | undefined
  /** Why the restore was as slow as it was. */
  readonly verdict?:
    | {
        readonly kind: string
        readonly sentence: string
        readonly remedy?: string | undefined
      }
    | undefined
}

/** A full timeline twice, once for other viewers, with much room. */
const MAX_BYTES = 256 * 2 ** 20

/**
 * Reads the record of a restore: the key `reapTrace` of a file that `reap-trace restore --trace`
 * wrote.
 *
 * @throws ReapTraceError
 * - `ERR_RECORD_INVALID`: it is no such file, or a field has a wrong value; `check` names it,
 * - `ERR_RECORD_IO`: the file cannot be opened or read.
 */
export async function readRestoreRecord(path: string): Promise<RestoreRecord> {
  checkOptions('readRestoreRecord()', { path }, { path: required(rules.path) }, 'argument')
  const invalid = (check: string, what: string, cause?: unknown) =>
    new ReapTraceError('ERR_RECORD_INVALID', `${path} is not a record of a restore: ${what}`, {
      path,
      check,
      hint: 'Write one with "reap-trace restore --trace FILE".',
      cause,
    })
  const text = await readText(path, (what) => invalid('size', what))
  let content: unknown
  try {
    content = JSON.parse(text)
  } catch (cause) {
    throw invalid('json', `it is not valid JSON (${(cause as Error).message})`, cause)
  }
  try {
    const record = (content as { reapTrace?: unknown } | null)?.reapTrace
    checkRecord(record)
    return record as RestoreRecord
  } catch (error) {
    if (!(error instanceof Mismatch)) throw error
    throw invalid(error.field, error.message)
  }
}

async function readText(path: string, invalid: (what: string) => Error): Promise<string> {
  let file: FileHandle | undefined
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const stats = await file.stat()
    if (!stats.isFile()) throw invalid('it is not a regular file')
    if (stats.size > MAX_BYTES) throw invalid(`it has ${stats.size} bytes`)
    return await file.readFile('utf8')
  } catch (error) {
    throw ioError('restore record', 'read', path, error)
  } finally {
    await file?.close()
  }
}
