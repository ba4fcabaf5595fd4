import { calibrateHost, type HostCalibration, hostCalibration, planRestore } from '../../index.js'
import type { AdviseArguments } from '../arguments/arguments.js'
import { abortOnSignal, Signals } from '../session/signals.js'
import { Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural, formatShare } from '../terminal/units.js'

export async function advise(args: AdviseArguments, terminal: Terminal): Promise<void> {
  const { file, memory: memoryFile, trustWorkingSet, vcpus } = args
  let calibration = await savedCalibration(terminal)
  if (args.calibrate && calibration === undefined) {
    await calibrateOnce(terminal)
    calibration = await savedCalibration(terminal)
  }
  const { backend, reason, residency, decidedMs } = await planRestore({
    snapshot: { memoryFile },
    workingSet: file,
    trustWorkingSet,
    vcpus,
    onBadWorkingSet: 'fail',
  })
  terminal.emit({ backend, reason, residency, vcpus, calibration: calibration ?? null, decidedMs })
  terminal.print(`${terminal.style('bold', backend)}: ${reason}`)
  terminal.print()
  if (residency) {
    const { pageCount, missingPageCount } = residency
    terminal.print(
      `memory file   ${formatPlural(pageCount - missingPageCount, 'page')} of ${formatPlural(pageCount, 'page')} in the page cache`,
    )
  }
  const guests = Object.entries(calibration?.guests ?? {})
  for (const [kind, { reads, writes }] of guests) {
    for (const [access, { mappedUs, installedUs }] of [
      ['reads', reads],
      ['writes', writes],
    ] as const) {
      terminal.print(
        `${`${kind}, ${access}`.padEnd(16)}${mappedUs.toFixed(1)} us per mapped page, ${installedUs.toFixed(1)} us per installed page`,
      )
    }
  }
  if (calibration) terminal.print(`calibrated    ${calibration.calibratedAt}`)
}

/** The calibration of this host, or null after a warning if its file cannot be used. */
const savedCalibration = (terminal: Terminal): Promise<HostCalibration | null | undefined> =>
  hostCalibration().catch((error) => {
    terminal.warn(error, 'the choice depends only on the page cache')
    return null
  })

/** Calibrates the host, which takes about two seconds. */
async function calibrateOnce(terminal: Terminal): Promise<void> {
  const signals = new Signals()
  const signal = abortOnSignal(signals)
  let share = 0
  terminal.say('calibrating this host, which is done once and takes about two seconds')
  const live = terminal.live(() => `calibrating · ${formatShare(share)}`)
  try {
    await calibrateHost({
      signal,
      onProgress: (progress) => {
        share = progress.share
      },
    })
  } catch (error) {
    if (signal.aborted) throw new Interrupted(signal.reason, `ended by ${signal.reason}`)
    terminal.warn(error, 'the choice depends only on the page cache')
  } finally {
    live.stop()
    signals.dispose()
  }
}
