import { ReapTraceError, type ReapTraceErrorCode } from '../../index.js'
import { printable } from './locale.js'

/** Error codes of the command line, in addition to those of {@link ReapTraceError}. */
export type CliErrorCode =
  | 'ERR_COMMAND_FAILED'
  | 'ERR_NOTHING_RECORDED'
  | 'ERR_VM_DID_NOT_RUN'
  | 'ERR_NOT_IDENTICAL'
  | 'ERR_DEMO_FAILED'
  | 'ERR_MACHINE_UNFIT'
  | 'ERR_NO_LISTENER'
  | 'ERR_USAGE'

/** A failure that ends the program with exit status 1. */
export class CliError extends Error {
  override readonly name = 'CliError'
  readonly code: CliErrorCode | ReapTraceErrorCode
  readonly hint: string | undefined

  constructor(code: CliErrorCode | ReapTraceErrorCode, message: string, hint?: string) {
    super(message)
    this.code = code
    this.hint = hint
  }
}

/** Thrown to end the program by the signal, after cleaning up. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted'
  readonly signal: NodeJS.Signals

  constructor(signal: NodeJS.Signals, message: string) {
    super(message)
    this.signal = signal
  }
}

/** Whether a system call failed, which is no bug of this program. */
const isSystemError = (error: unknown): error is NodeJS.ErrnoException =>
  error instanceof Error && 'syscall' in error && 'errno' in error

/** JSON form of an error. */
export function errorFields(error: unknown): Record<string, unknown> {
  if (error instanceof ReapTraceError) {
    const { code, message, hint, errno, syscall, path, check, offset } = error
    return { code, message, hint, errno, syscall, path, check, offset }
  }
  if (error instanceof CliError) {
    const { code, message, hint } = error
    return { code, message, hint }
  }
  if (error instanceof Interrupted) {
    return { code: 'ERR_INTERRUPTED', message: error.message, signal: error.signal }
  }
  if (isSystemError(error)) {
    const { message, errno, syscall, path } = error
    return { code: 'ERR_SYSTEM', message, errno, syscall, path }
  }
  return { code: 'ERR_INTERNAL', message: String(error) }
}

/** Message and hint of an error, as printed. */
export function describeError(
  kind: 'error' | 'warning',
  error: unknown,
  consequence?: string,
): string {
  if (error instanceof ReapTraceError || error instanceof CliError) {
    const hint = error.hint ? `\nhint: ${error.hint}` : ''
    const message = printable(error.message)
    const sentence = consequence ? `${message}; ${consequence}` : message
    return `${kind}: ${sentence} [${error.code}]${hint}`
  }
  if (isSystemError(error)) return `${kind}: ${printable(error.message)} [ERR_SYSTEM]`
  // An unexpected error: print its stack.
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
  return `${kind}: ${text}\nhint: This is a bug of reap-trace: please report it with the lines above.`
}
