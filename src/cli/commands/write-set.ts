import type { WorkingSet, WriteOptions } from '../../index.js'
import { abortOnSignal, type Signals } from '../session/signals.js'
import { Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatPlural, formatShare } from '../terminal/units.js'

/** Writes a working set, with its progress on a live line; a signal stops it. */
export async function writeSet(
  set: WorkingSet,
  output: string,
  options: WriteOptions,
  signals: Signals,
  terminal: Terminal,
): Promise<void> {
  let share = 0
  const live = terminal.live(() => `writing ${output} · ${formatShare(share)}`)
  const signal = abortOnSignal(signals)
  try {
    await set.write(output, {
      ...options,
      signal,
      onProgress: ({ pageCount, totalPageCount }) => {
        share = pageCount / totalPageCount
      },
    })
  } catch (error) {
    if (!signal.aborted) throw error
    throw new Interrupted(signal.reason, `ended by ${signal.reason}: ${output} is not written`)
  } finally {
    live.stop()
  }
}

/** "9 pages in 3 extents (36 KiB, 1.5 % of the memory)" */
export const describeSize = ({ pageCount, extents, bytes, memoryBytes }: WorkingSet): string =>
  `${formatPlural(pageCount, 'page')} in ${formatPlural(extents.length, 'extent')} (${formatBytes(bytes)}, ${formatShare(bytes / memoryBytes)} of the memory)`
