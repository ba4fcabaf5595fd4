import { endianness } from 'node:os'
import { ReapTraceError } from '../errors.js'
import { toError } from './explain.js'
import { isFailure, type NativeFailure } from './failure.js'
import { nativePath } from './native-path.js'

/** An event of a session, `kind` an index into {@link eventKinds}. */
export interface NativeEvent {
  readonly session: number
  readonly kind: number
  readonly failure: NativeFailure | null
  readonly pid: number
  readonly pageSize?: number
  /** Address, size and offset of each region. */
  readonly regions?: BigUint64Array
  /** pages, extents, bytes, fetchUs, installUs, sinceConnectUs, fromWorkingSet */
  readonly prefetch?: Float64Array
  /** Index into {@link endStates}. */
  readonly state?: number
}

declare const sessionBrand: unique symbol
/** A session of the native engine, opaque. */
export interface NativeSession {
  readonly [sessionBrand]: true
}

declare const recorderBrand: unique symbol
/** A recording of the page cache that goes on, opaque. */
export interface NativeRecorder {
  readonly [recorderBrand]: true
}

interface Addon {
  /** Starts this thread's engine. 0 or a negative errno. */
  start(listener: (event: NativeEvent) => void): number
  open(
    socketPath: string,
    memoryFile: string,
    flags: number,
    peerUid: number,
    connectTimeoutMs: number,
    planPath: string | null,
    planPageSize: number,
    groups: Uint8Array | null,
    extents: Uint8Array | null,
    proof: BigUint64Array | null,
  ): NativeFailure | [id: number, session: NativeSession]
  close(session: NativeSession, killVm: boolean): void
  detach(session: NativeSession): boolean
  stats(session: NativeSession, counters: Float64Array): void
  takeTrace(session: NativeSession): [pageSize: number, memoryBytes: number, touches: Uint32Array]
  shutdown(): void
  crc32c(bytes: Uint8Array, seed: number): number
  sampleDiskPages(path: string, pages: Uint32Array): Promise<NativeFailure | Uint32Array>
  /** `fileBytes` is null when it is not a regular file. */
  readIndex(
    path: string,
  ): Promise<
    | NativeFailure
    | [
        fileBytes: number | null,
        header: Uint8Array,
        index: Uint8Array,
        broken: [check: string, offset: number, what: string] | null,
        stamp: BigUint64Array,
      ]
  >
  /** `null` where it is not there, or not this user's alone. */
  readPrivateFile(folder: string, name: string): Promise<Uint8Array | null>
  /** Of a descriptor that is open for reading alone; true also where the kernel does not tell. */
  mayHaveWriters(fd: number): boolean
  /** Whether a file with this time of change is so old that every later change shows in it. */
  isSettled(changedAtNs: bigint, ageNs: bigint): boolean
  /** Runs on a thread of its own; `stop` ends it early. */
  compare(
    workingSet: number,
    memoryFile: number,
    groups: Uint8Array,
    extents: Uint8Array,
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
  probe(): [device: number, syscall: number, userModeOnly: number, features: bigint]
  /** `undefined` where it would wait, and where something fails: `survey()` says what. */
  surveyAtOnce(memoryFile: string, workingSet: string): Float64Array | undefined
  survey(memoryFile: string, workingSet: string): Promise<NativeFailure | Float64Array>
  prefetchPageCache(
    device: number,
    paths: readonly string[],
    touches: Uint32Array,
    pagesPerTouch: number,
    diskExtents: Uint32Array,
    budgetBytes: number,
  ): [job: number, end: Promise<[figures: Float64Array, failure: NativeFailure | null]>]
  cancelPrefetch(device: number, job: number): void
  startRecording(
    paths: readonly string[],
    intervalUs: number,
  ): Promise<NativeFailure | NativeRecorder>
  /** Touches are triples of file, page and microseconds. */
  stopRecording(
    recorder: NativeRecorder,
  ): Promise<[cached: Uint32Array, mapped: Uint32Array, figures: Float64Array]>
}

export const eventKinds = ['connected', 'prefetched', 'detach-failed', 'ended'] as const
export const counterNames = [
  'faults',
  'lateFaults',
  'residualFaults',
  'installed',
  'zero',
  'prefetched',
  'installedAhead',
  'present',
  'deferred',
  'discarded',
  'removed',
  'bytesRead',
] as const

export const flags = { record: 1, leaveVm: 2 } as const

let loaded: Addon | undefined

/** The addon, loaded when it is first needed. Throws `ERR_NATIVE_UNAVAILABLE`. */
export function native(): Addon {
  if (loaded) return loaded
  const path = nativePath('reap_trace.node')
  if (endianness() !== 'LE') {
    throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', 'reap-trace needs a little-endian machine')
  }
  try {
    // Not require(): the module loader has nothing to resolve here, and doubles the time.
    const module = { exports: {} as Addon }
    process.dlopen(module, path)
    loaded = module.exports
  } catch (cause) {
    throw new ReapTraceError('ERR_NATIVE_UNAVAILABLE', `${path} does not load: ${String(cause)}`, {
      path,
      hint: 'The bundled binary needs glibc 2.34 or later; elsewhere, build from a checkout with `npm run build`.',
      cause,
    })
  }
  return loaded
}

/** CRC-32C (Castagnoli) of `bytes`, going on from `seed`. */
export function crc32c(bytes: Uint8Array, seed = 0): number {
  return native().crc32c(bytes, seed)
}

/**
 * CRC-32C of each 4 KiB page of a disk image, read on a pool thread. A page in which it ends is padded
 * with zeros.
 *
 * @throws ReapTraceError `ERR_SOURCE_READ` when the file cannot be opened or read, or ends before a page.
 */
export async function sampleDiskPages(path: string, pages: Uint32Array): Promise<Uint32Array> {
  const result = await native().sampleDiskPages(path, pages)
  if (result instanceof Uint32Array) return result
  throw toError(result, { diskImage: path })
}

/** The header and the index of a working-set file. */
export interface RawIndex {
  /** `undefined` when it is not a regular file; there are no bytes then. */
  readonly fileBytes: number | undefined
  /** Shorter where the file is. */
  readonly header: Uint8Array
  /** Shorter where the file is. */
  readonly index: Uint8Array
  /**
   * The first broken rule of those for the index's checksum and its tables of groups, extents and
   * touches. It means nothing where the header breaks one.
   */
  readonly broken:
    | { readonly check: string; readonly offset: number; readonly what: string }
    | undefined
  /** The state of the file before anything was read. */
  readonly stamp: BigUint64Array
}

/**
 * Reads the header and the index of a working-set file, and checks the index, on a pool thread.
 *
 * @throws ReapTraceError `ERR_WORKING_SET_IO` when the file cannot be opened or read.
 */
export async function readIndex(path: string): Promise<RawIndex> {
  const result = await native().readIndex(path)
  if (isFailure(result)) throw toError(result, { workingSetPath: path })
  const [fileBytes, header, index, rule, stamp] = result
  // Buffers, whose slice() does not copy.
  const bytes = ({ buffer, byteOffset, byteLength }: Uint8Array) =>
    new Uint8Array(buffer, byteOffset, byteLength)
  const broken = rule ? { check: rule[0], offset: rule[1], what: rule[2] } : undefined
  return {
    fileBytes: fileBytes ?? undefined,
    header: bytes(header),
    index: bytes(index),
    broken,
    stamp,
  }
}

/** An open working-set file with its tables. */
export interface OpenWorkingSet {
  readonly path: string
  readonly fd: number
  readonly groups: Uint8Array
  readonly extents: Uint8Array
}

/**
 * Compares every page of a working set with the memory file; the descriptors may be closed when it
 * resolves.
 *
 * @returns how many pages there are, how many differ, and the first of these.
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SOURCE_READ`.
 * @throws the reason of `signal` when it aborts, and what `onProgress` throws.
 */
export async function compareFiles(
  workingSet: OpenWorkingSet,
  memoryFile: { readonly path: string; readonly fd: number },
  options: {
    /** On a thread that gets a core and the disk when nobody else wants them. */
    readonly background: boolean
    readonly signal: AbortSignal | undefined
    readonly onProgress: ((pages: number) => void) | undefined
  },
): Promise<[pages: number, mismatchedPages: number, mismatches: Uint32Array]> {
  const { background, signal, onProgress } = options
  const { groups, extents } = workingSet
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
    groups,
    extents,
    background,
    onProgress && progress,
  )
  if (!Array.isArray(started)) throw toError(started, context)
  const [stop, end] = started
  signal?.addEventListener('abort', stop, { once: true })
  try {
    const [pages, mismatchedPages, mismatches, failure] = await end
    signal?.throwIfAborted()
    if (thrown) throw (thrown as { readonly error: unknown }).error
    if (failure) throw toError(failure, context)
    return [pages, mismatchedPages, mismatches]
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}
