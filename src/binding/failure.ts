import type { ReapTraceErrorCode } from '../errors.js'

/** A native failure; explain.ts turns it into a message. */
export interface NativeFailure {
  readonly code: ReapTraceErrorCode
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
  readonly calibrationPath?: string
  readonly connectTimeoutMs?: number
  /** Fate of the VM, if the failure ended a session. */
  readonly vm?: { readonly pid: number; readonly state: EndState }
}
