import { measureHost } from '../../index.js'
import { hostModel } from '../../restore/host-model.js'
import { planRestore } from '../../restore/prepare.js'
import type { AdviseArguments } from '../arguments/program.js'
import { abortOnSignal, Signals } from '../session/signals.js'
import { Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatMs, formatPlural, formatShare } from '../terminal/units.js'

const names = { uffd: 'fault handler (Uffd)', 'page-cache': 'page cache (File)' } as const

export async function advise(args: AdviseArguments, terminal: Terminal): Promise<void> {
  const { file, memory, vcpus } = args
  if (args.measure) await measureOnce(terminal)
  const plan = await planRestore({
    memoryFile: memory,
    socketPath: '-',
    workingSet: file,
    vcpus,
    onBadWorkingSet: 'fail',
  })
  const { choice, reason, estimates, survey, decidedMs } = plan
  const { costs } = await hostModel()
  const { pages, extents, missingPages, missingExtents, missingBytes, isVisible } = survey
  terminal.emit({
    choice,
    reason,
    estimates: estimates ?? null,
    residency: { pages, extents, missingPages, missingExtents, missingBytes, isVisible },
    vcpus,
    host: costs ?? null,
    decidedMs,
  })
  terminal.print(`${terminal.style('bold', choice)}: ${reason}`)
  terminal.print()
  terminal.print(
    `memory file   ${formatPlural(pages - missingPages, 'page')} of ${formatPlural(pages, 'page')} in the page cache` +
      (missingPages > 0 ? `, the others in about ${formatPlural(missingExtents, 'extent')}` : ''),
  )
  terminal.print(
    `working set   ${formatShare(pages === 0 ? 1 : 1 - missingBytes / (pages * 4096))} of ${formatBytes(pages * 4096)} in the page cache`,
  )
  if (!estimates) {
    terminal.print('estimates     none: this host was not measured')
    return
  }
  terminal.print()
  for (const [backend, { ms, readMs }] of Object.entries(estimates)) {
    const reads = readMs > 0 ? `, ${formatMs(readMs)} of it reads` : ''
    terminal.print(
      `${names[backend as keyof typeof names].padEnd(22)} ${formatMs(ms).padStart(8)}${reads}`,
    )
  }
  terminal.print(
    `\nfor a guest that ${vcpus === 'kvm' ? 'KVM runs' : "the VMM's threads run"}; this host was measured at ${costs?.measuredAt}`,
  )
  if (vcpus === 'kvm' && !costs?.guests.kvm) {
    terminal.print('KVM could not be measured here: these are the costs of threads')
  }
}

/** Measures a host of which nothing is known, which takes some seconds. */
async function measureOnce(terminal: Terminal): Promise<void> {
  if ((await hostModel()).costs) return
  const signals = new Signals()
  const signal = abortOnSignal(signals)
  let share = 0
  const live = terminal.live(() => `measuring this host, once · ${formatShare(share)}`)
  try {
    await measureHost({
      signal,
      onProgress: (progress) => {
        share = progress.share
      },
    })
  } catch (error) {
    if (signal.aborted) throw new Interrupted(signal.reason, `ended by ${signal.reason}`)
    terminal.warn(error, 'the choice goes by what is in the page cache')
  } finally {
    live.stop()
    signals.dispose()
  }
}
