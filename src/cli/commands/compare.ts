import { open, rm, writeFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { planRestore, type ReapTraceError, requireUserfaultfd, writeReport } from '../../index.js'
import type { CompareArguments } from '../arguments/arguments.js'
import type { Arm } from '../compare/arms.js'
import { toCsv, toMarkdown } from '../compare/export.js'
import { makeReport, printReport } from '../compare/report.js'
import { type Listener, measureRounds, type Run, tryArms } from '../compare/rounds.js'
import type { Scene } from '../compare/run.js'
import { abortOnSignal, Signals } from '../session/signals.js'
import { temporaryFolder } from '../session/temporary-folder.js'
import { CliError, errorFields, Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural } from '../terminal/units.js'
import { checkIsNoInput, checkOutput, refusal } from './check-output.js'

export async function compare(args: CompareArguments, terminal: Terminal): Promise<void> {
  if (args.arms.some((arm) => arm !== 'kernel-file' && arm !== 'page-cache')) requireUserfaultfd()
  await checkFiles(args)
  const signals = new Signals()
  const signal = abortOnSignal(signals)
  const scratch = await temporaryFolder('reap-trace-compare-')
  let step = 'opening the snapshot'
  const live = terminal.live(() => step)
  const listener = listenerFor(args, terminal, (text) => {
    step = text
  })
  const runs: Run[] = []
  let complete = false
  try {
    const scene: Scene = { args, scratch, signal, onWarning: warnOnce(terminal) }
    const working = await tryArms(scene, args.arms, listener)
    if (working.length === 0) throw noArm('COMMAND failed with every arm')
    await measureRounds(scene, working, runs, listener)
    complete = true
  } catch (error) {
    if (!signal.aborted) throw error
    const done = formatPlural(runs.length, 'run')
    throw new Interrupted(signal.reason, `ended by ${signal.reason} after ${done}`)
  } finally {
    live.stop()
    // What was measured until a signal or a failure counts too.
    if (runs.some(({ sample }) => sample)) await output({ ...args, complete, runs }, terminal)
    await rm(scratch, { recursive: true, force: true })
    signals.dispose()
  }
  if (!runs.some(({ sample, leftOut }) => sample && !leftOut)) throw noArm('no run can be counted')
}

const noArm = (why: string): CliError =>
  new CliError(
    'ERR_COMMAND_FAILED',
    `nothing was measured: ${why}`,
    'Run COMMAND by "reap-trace restore" first. It must load the snapshot with the backend in REAP_TRACE_BACKEND_TYPE and …_PATH, and end its VM.',
  )

/** Fails early if a file cannot be read, or the results could not be written at the end. */
async function checkFiles(args: CompareArguments): Promise<void> {
  const { memory: memoryFile, disks: diskImages, snapshotId: id, trustWorkingSet } = args
  await planRestore({
    snapshot: { memoryFile, diskImages, id },
    workingSet: args.workingSet,
    trustWorkingSet,
    onBadWorkingSet: 'fail',
  })
  if (args.report !== undefined) {
    await checkOutput(args.report, args, { option: '--report', code: 'ERR_REPORT_IO' })
  }
  for (const [option, path] of [
    ['--export-csv', args.exportCsv],
    ['--export-markdown', args.exportMarkdown],
  ] as const) {
    if (path === undefined) continue
    await checkIsNoInput(path, args, { option, code: 'ERR_REPORT_IO' })
    const file = await open(path, 'a').catch((error: Error) => {
      throw refusal(path, 'ERR_REPORT_IO', error.message, `Choose a different ${option}.`)
    })
    await file.close()
  }
}

async function output(
  measured: CompareArguments & { readonly complete: boolean; readonly runs: readonly Run[] },
  terminal: Terminal,
): Promise<void> {
  const { memory, report, exportCsv, exportMarkdown, runs } = measured
  const comparison = makeReport(measured)
  terminal.emit(comparison)
  printReport(comparison, terminal)
  if (exportCsv !== undefined) await writeFile(exportCsv, toCsv(runs))
  if (exportMarkdown !== undefined) await writeFile(exportMarkdown, toMarkdown(comparison))
  if (report === undefined) return
  await writeReport(report, [{ name: basename(memory), comparison }])
  terminal.print(`wrote ${report}`)
}

/** Prints each warning of the restores once, since it recurs in each round. */
function warnOnce(terminal: Terminal): (error: ReapTraceError) => void {
  const known = new Set<string>()
  return (error) => {
    if (known.has(error.message)) return
    known.add(error.message)
    terminal.emit({ type: 'warning', error: errorFields(error) })
    terminal.warn(error, 'measured as it is')
  }
}

function listenerFor(
  { caches }: CompareArguments,
  terminal: Terminal,
  onStep: Listener['onStep'],
): Listener {
  const shown = new Set<Arm>()
  return {
    onStep,
    onFailure(arm, { cause, output }, isTrial) {
      terminal.emit({ type: 'warning', arm, error: errorFields(cause), output })
      if (shown.has(arm)) return
      shown.add(arm)
      terminal.warn(cause, isTrial ? `${arm} is left out` : `this run of ${arm} is left out`)
      for (const line of output) terminal.say(`  | ${line}`)
    },
    onStuck(cache, files) {
      const error = new CliError(
        'ERR_PAGE_CACHE',
        `${files.join(' and ')} cannot be evicted from the page cache`,
        'Is it on tmpfs, does a VM have it mapped, or do you lack the permission to write to it?',
      )
      if (caches.length === 1) throw error
      terminal.emit({ type: 'warning', error: errorFields(error) })
      terminal.warn(error, `no run with a ${cache} page cache`)
    },
  }
}
