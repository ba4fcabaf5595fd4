import type { ReapTraceErrorCode } from '../errors.js'

/** Codes of the engine; the others are those of failures that TypeScript finds. */
export type NativeErrorCode = Exclude<
  ReapTraceErrorCode,
  | 'ERR_UFFD_UNAVAILABLE'
  | 'ERR_SNAPSHOT_MISMATCH'
  | 'ERR_TRACE_INVALID'
  | 'ERR_TRACE_IO'
  | 'ERR_RECORD_INVALID'
  | 'ERR_RECORD_IO'
  | 'ERR_REPORT_IO'
  | 'ERR_STORE_INVALID'
  | 'ERR_CALIBRATION'
  | 'ERR_CLOSED'
>

/** A native failure; explain.ts turns it into an error. */
export interface NativeFailure {
  readonly code: NativeErrorCode
  readonly errno: number
  readonly syscall: string
  readonly check: string
  readonly offset: bigint
  readonly want: bigint
  readonly got: bigint
}

/** End state of a session. */
export type EndState = 'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'

/** Whether a native call returned a failure instead of a value. */
export const isFailure = (value: object): value is NativeFailure => 'syscall' in value

/** Facts for the message that the engine does not have. */
export interface FailureContext {
  readonly socketPath?: string
  readonly memoryFile?: string
  readonly diskImage?: string
  readonly workingSetPath?: string | undefined
  readonly tracePath?: string
  /** Path of an exported file of a store. */
  readonly exportPath?: string
  readonly calibrationPath?: string
  readonly storePath?: string
  readonly connectTimeoutMs?: number
  /** Fate of the VM, if the failure ended a session. */
  readonly vm?: { readonly pid: number; readonly state: EndState }
}

/** Message and remedy of a failure. */
export interface Explanation {
  readonly message: string
  readonly hint?: string | undefined
  readonly path?: string | undefined
}

export type Explain = (failure: NativeFailure, context: FailureContext) => Explanation
