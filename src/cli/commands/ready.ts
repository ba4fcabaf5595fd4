import { closeSync, constants, openSync, statSync, writeSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { readyLine } from '../session/ready-mark.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError } from '../terminal/failure.js'

/** Marks the guest of `record`, `restore` or `compare` as ready, as of the start of this process. */
export function ready(): void {
  // Node needs longer to start than some guests to answer.
  const atMs = monotonicMs() - performance.now()
  const path = process.env.REAP_TRACE_READY
  if (!path) throw noListener('REAP_TRACE_READY is not set')
  let fd: number
  try {
    if (!statSync(path).isFIFO()) throw noListener(`REAP_TRACE_READY is ${path}, which is no FIFO`)
    // Fails with ENXIO if nobody reads.
    fd = openSync(path, constants.O_WRONLY | constants.O_NONBLOCK)
  } catch (error) {
    if (error instanceof CliError) throw error
    throw noListener(`nobody reads ${path} (${(error as NodeJS.ErrnoException).code})`)
  }
  try {
    writeSync(fd, readyLine(atMs))
  } finally {
    closeSync(fd)
  }
}

const noListener = (why: string): CliError =>
  new CliError(
    'ERR_NO_LISTENER',
    `nobody waits for this mark: ${why}`,
    'Run it in the COMMAND of "reap-trace record", "restore" or "compare", while that runs.',
  )
