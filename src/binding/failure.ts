import type { ReapTraceErrorCode } from '../errors.js'

/** What a native failure says of itself; the sentence is made in explain.ts. */
export interface NativeFailure {
  readonly code: ReapTraceErrorCode
  readonly errno: number
  readonly syscall: string
  readonly check: string
  readonly offset: bigint
  readonly want: bigint
  readonly got: bigint
}

/** How a session ended. */
export type EndState = 'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'

/** What a native call returns instead of a value when it fails. */
export const isFailure = (value: object): value is NativeFailure => 'syscall' in value

/** What the engine does not know about its own session and a sentence needs. */
export interface FailureContext {
  readonly socketPath?: string
  readonly memoryFile?: string
  readonly diskImage?: string
  readonly workingSetPath?: string | undefined
  readonly connectTimeoutMs?: number
  /** What became of the VM, when the failure ended a session. */
  readonly vm?: { readonly pid: number; readonly state: EndState }
}
