/** Current time on CLOCK_MONOTONIC, in milliseconds, as in `atMs`. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6

/** Wall-clock time of a time on CLOCK_MONOTONIC, in milliseconds. */
export const dateOf = (atMs: number): Date => new Date(Date.now() + atMs - monotonicMs())
