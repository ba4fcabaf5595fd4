import type { ReapTraceError } from './errors.js'

/** A failure that does not stop the operation. */
export interface WarningEvent {
  readonly type: 'warning'
  /** Time of the failure in milliseconds of CLOCK_MONOTONIC, the clock of `process.hrtime()`. */
  readonly atMs: number
  readonly error: ReapTraceError
}

/** Milliseconds of CLOCK_MONOTONIC. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6

export const warning = (error: ReapTraceError, atMs = monotonicMs()): WarningEvent => ({
  type: 'warning',
  atMs,
  error,
})

/**
 * Calls the listener. An exception or rejection from it becomes a process warning, so that it
 * neither corrupts the caller's state nor ends the process.
 */
export function report<T>(
  { onEvent }: { readonly onEvent?: ((event: T) => unknown) | undefined },
  event: T,
): void {
  const warn = (error: unknown) =>
    process.emitWarning(`onEvent of reap-trace has thrown: ${String(error)}`, {
      type: 'ReapTraceWarning',
      ...(error instanceof Error && error.stack && { detail: error.stack }),
    })
  try {
    const returned = onEvent?.(event)
    if (returned instanceof Promise) returned.catch(warn)
  } catch (error) {
    warn(error)
  }
}
