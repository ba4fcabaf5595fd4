import type { ReapTraceErrorCode } from '../errors.js'

/** What a native failure says of itself; the sentence is made in explain.ts. */
export interface NativeFailure {
  /** Index into `errorCodes`. */
  readonly code: number
  readonly errno: number
  readonly syscall: string
  readonly check: string
  readonly offset: bigint
  readonly want: bigint
  readonly got: bigint
}

// The three lists follow the enums in native/: failure.h, session.h, ledger.h.
export const errorCodes: readonly ReapTraceErrorCode[] = [
  'ERR_CLOSED', // 0 is "no failure" and never arrives
  'ERR_SOCKET',
  'ERR_HANDSHAKE_TIMEOUT',
  'ERR_HANDSHAKE_INVALID',
  'ERR_PEER_REFUSED',
  'ERR_SOURCE_READ',
  'ERR_WORKING_SET_INVALID',
  'ERR_WORKING_SET_IO',
  'ERR_FAULT_UNRESOLVED',
  'ERR_SNAPSHOT_MISMATCH',
  'ERR_PAGE_CACHE',
]
export const endStates = ['closed', 'vm-exited', 'vm-killed', 'vm-left', 'detached'] as const

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
  readonly vm?: { readonly pid: number; readonly state: (typeof endStates)[number] }
}
