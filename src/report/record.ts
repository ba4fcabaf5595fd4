import { checkOptions, required, rules } from '../options.js'
import type { PageCachePrefetchResult } from '../page-cache/prefetch.js'
import type { FaultStats, PrefetchResult, ServeResult } from '../uffd/fault-handler.js'
import type { SessionTimes, Timeline } from '../uffd/timing.js'
import { checkShape, type RecordKind, readValues } from './json-file.js'
import { checkFile } from './record-shape.js'

/** Times of a restore, in milliseconds of CLOCK_MONOTONIC. */
export interface RestoreTimes extends Partial<SessionTimes> {
  /** Time of the restore request. */
  readonly started: number
  /** Start of the command that loads the snapshot. */
  readonly commandStarted?: number | undefined
  readonly commandEnded?: number | undefined
}

/**
 * Main cause of a restore's duration:
 * - `set-missing`, `set-does-not-fit`, `set-too-large`: the working set,
 * - `prefetch-failed`: a failure that ended the prefetch,
 * - `disk`: a slow disk; `cold-cache`: a page cache that is usually warm,
 * - `cores`: other work on the cores,
 * - `vmm`: the time before the VMM's handshake,
 * - `backend`: the other backend is faster here,
 * - `limit`: this host installs pages no faster,
 * - `application`: nothing in the restore.
 */
export type VerdictKind =
  | 'set-missing'
  | 'set-does-not-fit'
  | 'set-too-large'
  | 'prefetch-failed'
  | 'disk'
  | 'cold-cache'
  | 'cores'
  | 'vmm'
  | 'backend'
  | 'limit'
  | 'application'

/** Judgment on a restore. */
export interface Verdict {
  readonly kind: VerdictKind
  /** The cause with its figures. */
  readonly sentence: string
  /** What to do about it. */
  readonly remedy?: string | undefined
}

/** Record of one restore, as `reap-trace restore --trace` writes it. */
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
  /** Choice that `'auto'` would make from measurements. */
  readonly automatic?:
    | { readonly backend: 'uffd' | 'page-cache'; readonly reason: string }
    | undefined
  readonly verdict?: Verdict | undefined
}

const kind: RecordKind = {
  file: 'restore record',
  name: 'a record of a restore',
  hint: 'Write one with "reap-trace restore --trace FILE".',
}

/** Whether a value claims to be a file of {@link writeRestoreRecord}. */
export const isRecordFile = (value: unknown): boolean =>
  (value as { reapTrace?: unknown } | null)?.reapTrace !== undefined

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
  return recordIn(await readValues(path, kind), path)
}

/** The record among the values of a file. */
export function recordIn([value]: readonly unknown[], path: string): RestoreRecord {
  checkShape(checkFile, value ?? {}, path, kind)
  return (value as { reapTrace: RestoreRecord }).reapTrace
}
