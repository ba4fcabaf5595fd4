import { WorkingSet } from '../../index.js'
import type { VerifyArguments } from '../arguments/arguments.js'
import { abortOnSignal, Signals } from '../session/signals.js'
import { CliError, Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural, formatShare } from '../terminal/units.js'

const SHOWN = 8

export async function verify({ file, memory }: VerifyArguments, terminal: Terminal): Promise<void> {
  const signals = new Signals()
  const signal = abortOnSignal(signals)
  let share = 0
  const live = terminal.live(() => `comparing ${file} with ${memory} · ${formatShare(share)}`)
  try {
    // Compared only: no guest gets any of it.
    const set = await WorkingSet.read(file, { trust: true })
    const result = await set.verify(
      { memoryFile: memory },
      {
        signal,
        onProgress: ({ pageCount, totalPageCount }) => {
          share = pageCount / totalPageCount
        },
      },
    )
    terminal.emit({ path: file, memory, ...result })
    if (result.identical) {
      const next = result.remembered
        ? '; restores on this host install its bytes'
        : '; this host cannot remember it, so restores take the bytes from the memory file'
      terminal.print(`identical: all of ${formatPlural(result.pageCount, 'page')}${next}`)
      return
    }
    for (const { page, offset } of result.mismatches.slice(0, SHOWN)) {
      terminal.print(`differs: page ${page}, at 0x${offset.toString(16)} of the memory file`)
    }
    const more = result.mismatchedPageCount - Math.min(SHOWN, result.mismatches.length)
    if (more > 0) terminal.print(`and ${formatPlural(more, 'page')} more`)
    throw new CliError(
      'ERR_SNAPSHOT_MISMATCH',
      `${result.mismatchedPageCount} of ${formatPlural(result.pageCount, 'page')} of ${file} differ from ${memory}`,
      'Record the working set again from this snapshot.',
    )
  } catch (error) {
    if (signal.aborted) throw new Interrupted(signal.reason, 'not all pages were compared')
    throw error
  } finally {
    live.stop()
    signals.dispose()
  }
}
