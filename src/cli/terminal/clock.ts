/** Now, on the clock of all `atMs`. */
export const monotonicMs = (): number => Number(process.hrtime.bigint()) / 1e6

/** The wall-clock time of a time of CLOCK_MONOTONIC. */
export const dateOf = (atMs: number): Date => new Date(Date.now() + atMs - monotonicMs())
