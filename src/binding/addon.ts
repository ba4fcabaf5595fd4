import { endianness } from 'node:os'
import { onAbort } from '../abort.js'
import { ReapTraceError } from '../errors.js'
import { toError } from './explain.js'
import { type EndState, isFailure, type NativeFailure } from './failure.js'
import { loadAddon } from './load-addon.js'
import { nativePath } from './native-path.js'

/** An event of a session. */
export type NativeEvent = {
  readonly session: number
  /** Time of the event in milliseconds of CLOCK_MONOTONIC. */
  readonly atMs: number
  readonly failure: NativeFailure | null
  readonly pid: number
} & (
  | {
      readonly kind: 'connected'
      readonly pageSize: number
      /** Address, size and offset of each region. */
      readonly regions: BigUint64Array
    }
  | {
      readonly kind: 'prefetched'
      /** pages, extents, bytes, sinceConnectUs, fromWorkingSet */
      readonly prefetch: Float64Array
    }
  | { readonly kind: 'detach-failed' }
  | { readonly kind: 'read-hangs' }
  | { readonly kind: 'ended'; readonly state: EndState; readonly oom?: true }
)

declare const sessionBrand: unique symbol
/** A session of the native engine, opaque. */
export interface NativeSession {
  readonly [sessionBrand]: true
}

declare const recorderBrand: unique symbol
/** A page-cache recording in progress, opaque. */
export interface NativeRecorder {
  readonly [recorderBrand]: true
}

declare const workingSetBrand: unique symbol
/** The tables of a working set, opaque. */
export interface NativeWorkingSet {
  readonly [workingSetBrand]: true
}

declare const filesBrand: unique symbol
/** Open files of a restore; owned by a session, or closed by {@link closeFiles}. */
export interface NativeFiles {
  readonly [filesBrand]: true
}

declare const lockBrand: unique symbol
/** A lock on a file; released by {@link unlock}, and when it is garbage-collected. */
export interface NativeLock {
  readonly [lockBrand]: true
}

/** Facts about a working-set file, without its tables. */
export interface WorkingSetFacts {
  readonly fileBytes: number
  readonly memoryBytes: number
  readonly pageSize: number
  readonly runs: number
  readonly touchCount: number
  /** Number of touched pages that the guest modified, plus 1; 0 if unknown. */
  readonly writtenTouches: number
  readonly dataPages: number
  readonly zeroPages: number
  readonly groupCount: number
  readonly extentCount: number
  /** Offset of `manifest` in the file. */
  readonly manifestAt: number
  readonly id: Uint8Array
  readonly manifest: Uint8Array
  /** State of the file before anything was read. */
  readonly stamp: BigUint64Array
  readonly disks: readonly {
    readonly name: Uint8Array
    readonly bytes: number
    readonly pages: number
    /** Pairs of a page and its checksum. */
    readonly samples: Uint32Array
  }[]
}

/** Result of {@link openFiles}. */
export interface OpenedFiles {
  readonly files: NativeFiles
  readonly memoryStamp?: BigUint64Array
  /** Whether the working-set file is open and unchanged since the set was read. */
  readonly isCurrent: boolean
  /** Absent without a working set, and if the known one is current. */
  readonly set?: NativeWorkingSet
  readonly facts?: WorkingSetFacts
  /** Content of the file of findings about the working set. */
  readonly findings?: Uint8Array
  /** Whether VMs can share the memory file's page cache; true if residency was not asked for. */
  readonly isMappable: boolean
  /** Residency of the working set in the memory file; all three present, or none. */
  readonly pageCount?: number
  readonly missingPageCount?: number
  readonly isVisible?: boolean
}

interface Addon {
  /** Starts this thread's engine. */
  start(listener: (event: NativeEvent) => void): NativeFailure | null
  /** Takes ownership of the files even if it fails. */
  open(
    socketPath: string,
    files: NativeFiles,
    set: NativeWorkingSet | null,
    isProven: boolean,
    flags: number,
    peerUid: number,
    vmmPid: number,
    connectTimeoutMs: number,
    readTimeoutMs: number,
    heldOut: Uint32Array,
  ): NativeFailure | [id: number, session: NativeSession]
  close(session: NativeSession, killVm: boolean): void
  detach(session: NativeSession): boolean
  /** Reads of the memory file if it need not wait; false otherwise. */
  readCached(session: NativeSession, offset: number, into: Uint8Array): boolean
  /** Counters by name. */
  counters(session: NativeSession): Record<string, number>
  /** Times of the steps that were reached, by name, in milliseconds of CLOCK_MONOTONIC. */
  steps(session: NativeSession): Record<string, number>
  /** Returns false if the session ended before. */
  markReady(session: NativeSession, atMs: number): boolean
  /**
   * Slowest faults: offset, wait in microseconds and class of each. By class: count, total and
   * maximum in microseconds, then limit and count of each bucket.
   */
  waits(
    session: NativeSession,
  ): [
    stalledMs: number,
    slowest: Float64Array,
    classes: Record<'on-demand' | 'late' | 'residual', Float64Array>,
  ]
  /** fetchMs, diskMs, diskBytes, installMs, installCpuMs */
  prefetchWork(session: NativeSession): Float64Array
  /** Spans of eight numbers: kind, from, to, offset, bytes, class, waited and thread. */
  timeline(session: NativeSession): [spans: Float64Array, missing: number]
  takeTrace(session: NativeSession): [pageSize: number, memoryBytes: number, touches: Uint32Array]
  shutdown(): void
  crc32c(bytes: Uint8Array, seed: number): number
  /** The stamp, and whether it is a regular file. */
  statFile(path: string): Promise<NativeFailure | [stamp: BigUint64Array, isFile: boolean]>
  sampleDiskPages(path: string, pages: Uint32Array): Promise<NativeFailure | Uint32Array>
  openFiles(
    memoryFile: string,
    workingSet: string,
    known: NativeWorkingSet | null,
    isGiven: boolean,
    isTrusted: boolean,
    findingsFolder: string,
    wantsResidency: boolean,
  ): Promise<NativeFailure | OpenedFiles>
  closeFiles(files: NativeFiles): void
  makeWorkingSet(
    memoryBytes: number,
    pageSize: number,
    touches: Uint32Array,
    diskTouchCounts: Uint32Array,
    diskTouches: Uint32Array,
  ): NativeWorkingSet
  touchesOf(set: NativeWorkingSet): [touches: Uint32Array, diskTouches: Uint32Array]
  /** Pairs of a first page and a number of 4 KiB pages; empty for a set without a file. */
  zeroExtentsOf(set: NativeWorkingSet): Uint32Array
  /** Null if the file is missing or a link; `ERR_UNTRUSTED_FILE` as `checkWriters()`. */
  readPrivateFile(folder: string, name: string): Promise<Uint8Array | NativeFailure | null>
  /** Null if another process, or this one, holds the lock. */
  tryLock(path: string): Promise<NativeFailure | NativeLock | null>
  unlock(lock: NativeLock): void
  /** `ERR_UNTRUSTED_FILE` if another user than this one and root may write to the file. */
  checkWriters(fd: number): NativeFailure | null
  /** For a read-only descriptor; true also if the kernel does not report writers. */
  mayHaveWriters(fd: number): boolean
  /**
   * Whether a file with this ctime is old enough for its timestamps to reveal every later change.
   */
  isSettled(changedAtNs: bigint, ageNs: bigint): boolean
  /** Runs on a separate thread; `stop` ends it early. */
  compare(
    workingSet: number,
    memoryFile: number,
    set: NativeWorkingSet,
    background: boolean,
    onProgress: ((pages: number) => void) | undefined,
  ):
    | NativeFailure
    | [
        stop: () => void,
        end: Promise<
          [
            pages: number,
            mismatchedPages: number,
            mismatches: Uint32Array,
            failure: NativeFailure | null,
          ]
        >,
      ]
  /** Names of the engine for failures, events, ends and counters. */
  names(): Record<
    'errors' | 'events' | 'ends' | 'counters' | 'steps' | 'faultClasses' | 'spans',
    string[]
  >
  probe(): [device: number, syscall: number, userModeOnly: number, features: bigint]
  prefetchPageCache(
    device: number,
    paths: readonly string[],
    set: NativeWorkingSet,
    maxBytes: number,
  ):
    | NativeFailure
    | [job: number, end: Promise<[figures: Float64Array, failure: NativeFailure | null]>]
  cancelPrefetch(device: number, job: number): void
  /**
   * Takes the files. Each result, null for a file that is not open or not read by restores, has
   * bytes, isVisible, cachedBytes, reads, readBytes, sampledReads, sampledBytes, sampleUs.
   */
  readCosts(
    files: NativeFiles,
    set: NativeWorkingSet,
  ): Promise<NativeFailure | [workingSet: Float64Array | null, memoryFile: Float64Array | null]>
  startRecording(
    paths: readonly string[],
    intervalUs: number,
  ): Promise<NativeFailure | NativeRecorder>
  /** Touches are triples of file, page and time in microseconds. */
  stopRecording(
    recorder: NativeRecorder,
  ): Promise<NativeFailure | [cached: Uint32Array, mapped: Uint32Array, figures: Float64Array]>
}

export const flags = { record: 1, leaveVm: 2, failIfReadHangs: 4, timeline: 8 } as const

let loaded: Addon | undefined

/** Returns the addon, loading it on first use. Throws `ERR_NATIVE_UNAVAILABLE`. */
export function native(): Addon {
  if (loaded) return loaded
  if (endianness() !== 'LE') {
    throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', 'reap-trace needs a little-endian machine')
  }
  loaded = loadAddon(nativePath('reap_trace.node')) as Addon
  return loaded
}

/** CRC-32C (Castagnoli) of `bytes`, continuing from `seed`. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return native().crc32c(bytes, seed)
}

/**
 * CRC-32C of each given 4 KiB page of a disk image, read on a separate thread. A partial last page is
 * padded with zeros.
 *
 * @throws ReapTraceError `ERR_SOURCE_READ` if the file cannot be opened or read, or ends before a
 * page.
 */
export async function sampleDiskPages(path: string, pages: Uint32Array): Promise<Uint32Array> {
  const result = await native().sampleDiskPages(path, pages)
  if (result instanceof Uint32Array) return result
  throw toError(result, { diskImage: path })
}

/**
 * Opens the files of a restore and reads the working set unless it is known, in one call on a
 * separate thread. An empty path stands for no file.
 *
 * @param options.known working set previously read from the path.
 * @param options.isGiven uses `known` even if the file was replaced or is gone.
 * @param options.isTrusted uses the working-set file whoever may write to it.
 * @param options.findingsFolder folder of the findings about working sets; empty for none.
 * @param options.wantsResidency samples the page-cache residency of the set.
 * @throws ReapTraceError
 * - `ERR_SOURCE_READ`: the memory file cannot be opened,
 * - `ERR_WORKING_SET_IO`: the working-set file cannot be opened or read,
 * - `ERR_WORKING_SET_INVALID`: it breaks a rule of the format,
 * - `ERR_UNTRUSTED_FILE`: another user may write to it.
 */
export async function openFiles(
  memoryFile: string,
  workingSet: string,
  options: {
    readonly known?: NativeWorkingSet | undefined
    readonly isGiven?: boolean
    readonly isTrusted?: boolean
    readonly findingsFolder?: string
    readonly wantsResidency?: boolean
  } = {},
): Promise<OpenedFiles> {
  const { known = null, isGiven = false, isTrusted = false } = options
  const { findingsFolder = '', wantsResidency = false } = options
  const found = await native().openFiles(
    memoryFile,
    workingSet,
    known,
    isGiven,
    isTrusted,
    findingsFolder,
    wantsResidency,
  )
  if (isFailure(found)) throw toError(found, { memoryFile, workingSetPath: workingSet })
  return found
}

/**
 * Compares every page of a working set with the memory file. The descriptors must stay open until
 * it settles.
 *
 * @returns the number of pages, the number of pages that differ, and the first of these.
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SOURCE_READ`.
 * @throws the reason of `signal` when it aborts, and what `onProgress` throws.
 */
export async function compareFiles(
  workingSet: { readonly path: string; readonly fd: number; readonly set: NativeWorkingSet },
  memoryFile: { readonly path: string; readonly fd: number },
  options: {
    /** Runs the thread with idle CPU and I/O priority. */
    readonly background: boolean
    readonly signal: AbortSignal | undefined
    readonly onProgress: ((pages: number) => void) | undefined
  },
): Promise<[pages: number, mismatchedPages: number, mismatches: Uint32Array]> {
  const { background, signal, onProgress } = options
  const context = { workingSetPath: workingSet.path, memoryFile: memoryFile.path }
  signal?.throwIfAborted()
  let thrown: { readonly error: unknown } | undefined
  const progress = (pages: number): void => {
    if (thrown) return
    try {
      onProgress?.(pages)
    } catch (error) {
      thrown = { error }
      stop()
    }
  }
  const started = native().compare(
    workingSet.fd,
    memoryFile.fd,
    workingSet.set,
    background,
    onProgress && progress,
  )
  if (!Array.isArray(started)) throw toError(started, context)
  const [stop, end] = started
  const removeListener = onAbort(signal, stop)
  try {
    const [pages, mismatchedPages, mismatches, failure] = await end
    signal?.throwIfAborted()
    if (thrown) throw (thrown as { readonly error: unknown }).error
    if (failure) throw toError(failure, context)
    return [pages, mismatchedPages, mismatches]
  } finally {
    removeListener()
  }
}
