import { constants } from 'node:os'

// A new code: CONTRIBUTING.md lists the other places that it needs.
/**
 * Code of a {@link ReapTraceError}.
 *
 * | code | when |
 * |---|---|
 * | `ERR_NATIVE_UNAVAILABLE` | the native addon is missing, does not load on this machine, or no thread can be started |
 * | `ERR_UFFD_UNAVAILABLE` | userfaultfd is not available on this machine, or lacks a feature |
 * | `ERR_LIMIT` | no file descriptor is left; `check` names the limit, of the process or of the host |
 * | `ERR_SOCKET` | the socket path cannot be bound |
 * | `ERR_HANDSHAKE_TIMEOUT` | no process connected in time, or the handshake was not completed in time |
 * | `ERR_VMM_EXITED` | the VMM passed as `vmm` exited before it connected, or did not start |
 * | `ERR_HANDSHAKE_INVALID` | the handshake is malformed (JSON, descriptors, regions, page sizes) |
 * | `ERR_PEER_REFUSED` | the process that connected is not allowed to |
 * | `ERR_VMM_UNSUPPORTED` | the VMM asks its userfaultfd for more than missing pages: minor or write-protect faults, fork events, or signals |
 * | `ERR_SNAPSHOT_MISMATCH` | the working set was made for another memory file or disk image |
 * | `ERR_WORKING_SET_INVALID` | a working-set file fails a check (magic, version, checksum, bounds) |
 * | `ERR_WORKING_SET_IO` | a working-set file cannot be opened, read or written |
 * | `ERR_UNTRUSTED_FILE` | another user may write to a working-set, trace or calibration file, or to a file of a store |
 * | `ERR_TRACE_INVALID` | a trace file fails a check (magic, version, checksum, bounds) |
 * | `ERR_TRACE_IO` | a trace file cannot be opened, read or written |
 * | `ERR_RECORD_INVALID` | a file is not a record of a restore, or not a comparison; `check` names the wrong field |
 * | `ERR_RECORD_IO` | a record of a restore or a comparison cannot be opened, read or written |
 * | `ERR_REPORT_IO` | a report cannot be written, or its template is missing from the package |
 * | `ERR_STORE_INVALID` | a file of a store fails a check |
 * | `ERR_STORE_IO` | a file of a store cannot be opened, read or written |
 * | `ERR_SOURCE_READ` | the memory file or a disk image cannot be opened or read, or the memory file is shorter than the guest's memory |
 * | `ERR_FAULT_UNRESOLVED` | a fault cannot be served: the kernel refused, or the address is in no region |
 * | `ERR_PAGE_CACHE` | the page cache cannot be recorded: hidden from this process, or a file cannot be evicted |
 * | `ERR_CALIBRATION` | this host cannot be calibrated, or its calibration cannot be saved |
 * | `ERR_CLOSED` | the fault handler was used after it ended |
 */
export type ReapTraceErrorCode =
  | 'ERR_NATIVE_UNAVAILABLE'
  | 'ERR_UFFD_UNAVAILABLE'
  | 'ERR_LIMIT'
  | 'ERR_SOCKET'
  | 'ERR_HANDSHAKE_TIMEOUT'
  | 'ERR_VMM_EXITED'
  | 'ERR_HANDSHAKE_INVALID'
  | 'ERR_PEER_REFUSED'
  | 'ERR_VMM_UNSUPPORTED'
  | 'ERR_SNAPSHOT_MISMATCH'
  | 'ERR_WORKING_SET_INVALID'
  | 'ERR_WORKING_SET_IO'
  | 'ERR_UNTRUSTED_FILE'
  | 'ERR_TRACE_INVALID'
  | 'ERR_TRACE_IO'
  | 'ERR_RECORD_INVALID'
  | 'ERR_RECORD_IO'
  | 'ERR_REPORT_IO'
  | 'ERR_STORE_INVALID'
  | 'ERR_STORE_IO'
  | 'ERR_SOURCE_READ'
  | 'ERR_FAULT_UNRESOLVED'
  | 'ERR_PAGE_CACHE'
  | 'ERR_CALIBRATION'
  | 'ERR_CLOSED'

/** Details of a failure, in addition to its message. */
export interface ReapTraceErrorDetails {
  /** Remedy, as a sentence. */
  readonly hint?: string | undefined
  /** Negative error number, as in Node's system errors. */
  readonly errno?: number | undefined
  /** System call that failed. */
  readonly syscall?: string | undefined
  /** Path of the file or socket. */
  readonly path?: string | undefined
  /** Name of the check that failed, for rejected input. */
  readonly check?: string | undefined
  /** Byte offset in `path` of the invalid or unreadable data. */
  readonly offset?: number | undefined
  readonly cause?: unknown
}

/**
 * Error class of reap-trace, for every failure except misuse (`TypeError`).
 *
 * Match on `code`: messages may change, and `instanceof` fails when two copies of the package are
 * loaded.
 */
export class ReapTraceError extends Error {
  override readonly name = 'ReapTraceError'
  readonly code: ReapTraceErrorCode
  declare readonly hint?: string
  declare readonly errno?: number
  declare readonly syscall?: string
  declare readonly path?: string
  declare readonly check?: string
  declare readonly offset?: number

  constructor(code: ReapTraceErrorCode, message: string, details: ReapTraceErrorDetails = {}) {
    const { cause, ...fields } = details
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
    for (const [key, value] of Object.entries(fields)) {
      if (value !== undefined) Object.assign(this, { [key]: value })
    }
  }

  /** Includes the message, which `JSON.stringify()` omits by default. */
  toJSON(): object {
    const { message } = this
    return { ...this, message }
  }
}

/** Whether an error concerns the working set alone, so that a restore can continue without it. */
export const isWorkingSetError = (error: unknown): error is ReapTraceError =>
  error instanceof ReapTraceError && WORKING_SET_CODES.includes(error.code)

const WORKING_SET_CODES: readonly ReapTraceErrorCode[] = [
  'ERR_WORKING_SET_INVALID',
  'ERR_WORKING_SET_IO',
  'ERR_SNAPSHOT_MISMATCH',
  'ERR_UNTRUSTED_FILE',
]

/** Whether the working-set file does not exist, as before the first recording. */
export const isMissing = ({ code, syscall, errno }: ReapTraceError): boolean =>
  code === 'ERR_WORKING_SET_IO' && syscall === 'open' && errno === -constants.errno.ENOENT
