import { availableParallelism, cpus, release } from 'node:os'
import type { ArmFigures, Comparison, ComparisonRun, Spread } from '../../index.js'
import { type Cache, caches } from '../measure/page-cache.js'
import { median, outliers, summary } from '../measure/statistics.mjs'
import type { Terminal } from '../terminal/terminal.js'
import { formatCount, formatMs, formatPlural } from '../terminal/units.js'
import { type Arm, arms } from './arms.js'
import type { Run } from './rounds.js'
import type { Sample } from './run.js'

const MIN_ROUNDS = 5
const MIN_MS = 5

export function makeReport(facts: {
  readonly complete: boolean
  readonly command: readonly string[]
  readonly memory: string
  readonly workingSet: string
  readonly rounds: number
  readonly seed: number
  readonly runs: readonly Run[]
}): Comparison {
  const { complete, command, memory: memoryFile, workingSet, rounds, seed, runs } = facts
  const counted = runs.filter(isCounted)
  const present = arms.filter((arm) => counted.some((run) => run.arm === arm))
  const base = present[0] ?? null
  const outlying = new Set<Run>()
  const figures = (cache: Cache) =>
    present.flatMap((arm) => {
      const own = runs.filter((run) => run.cache === cache)
      for (const run of outlyingOf(own.filter((run) => run.arm === arm))) outlying.add(run)
      return figuresOf(arm, base!, own, outlying)
    })
  const [cold, warm] = [figures('cold'), figures('warm')]
  const concluded = (cache: Cache) => conclusions(cache, base, cache === 'cold' ? cold : warm)
  return {
    type: 'comparison',
    date: new Date().toISOString(),
    complete,
    command,
    memoryFile,
    workingSet,
    rounds,
    seed,
    base,
    cold,
    warm,
    basis: basisOf(complete, rounds, runs),
    conclusions: { cold: concluded('cold'), warm: concluded('warm') },
    warnings: warningsOf(cold, warm, runs),
    runs: runs.map((run) => ({ ...run, isOutlier: outlying.has(run) })),
    kernel: release(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cpus: availableParallelism(),
    node: process.versions.node,
  }
}

type Counted = Run & { readonly sample: Sample }

const isCounted = (run: Run): run is Counted =>
  run.sample !== undefined && run.leftOut === undefined

/** Outliers among the runs of an arm in one state of the page cache. */
function outlyingOf(runs: readonly Run[]): Run[] {
  const counted = runs.filter(isCounted)
  const isFar = outliers(counted.map(({ sample }) => sample.ms))
  return counted.filter((_, i) => isFar[i])
}

/** Figures of an arm, or none without a counted run. */
function figuresOf(
  arm: Arm,
  base: Arm,
  runs: readonly Run[],
  outlying: ReadonlySet<Run>,
): ArmFigures[] {
  const own = runs.filter((run) => run.arm === arm)
  const counted = own.filter(isCounted)
  const ms = spreadOf(counted.map(({ sample }) => sample.ms))
  if (!ms) return []
  const baseMs = new Map(
    runs.filter(isCounted).flatMap((run) => (run.arm === base ? [[run.round, run.sample.ms]] : [])),
  )
  const ratios = counted.map(({ round, sample }) => sample.ms / (baseMs.get(round) ?? Number.NaN))
  const counter = (name: 'faults' | 'lateFaults' | 'residualFaults' | 'stalledMs') =>
    median(counted.map(({ sample }) => sample.stats?.[name])) ?? null
  const chosen: Record<string, number> = {}
  for (const { sample } of counted) chosen[sample.backend] = (chosen[sample.backend] ?? 0) + 1
  return [
    {
      arm,
      ms,
      ratio: (arm !== base && spreadOf(ratios)) || null,
      faults: counter('faults'),
      lateFaults: counter('lateFaults'),
      residualFaults: counter('residualFaults'),
      stalledMs: counter('stalledMs'),
      chosen: arm === 'auto' ? chosen : null,
      outlierCount: own.filter((run) => outlying.has(run)).length,
      leftOutCount: own.length - counted.length,
    },
  ]
}

function spreadOf(values: readonly number[]): Spread | undefined {
  const found = summary(values)
  if (!found) return undefined
  const { median, p25, p75, samples } = found
  return { median, p25, p75, samples }
}

/** Limits of the figures, each with a remedy. */
function warningsOf(
  cold: readonly ArmFigures[],
  warm: readonly ArmFigures[],
  runs: readonly Run[],
): string[] {
  const all = [...cold, ...warm]
  const warnings: string[] = []
  const outlierCount = all.reduce((sum, { outlierCount }) => sum + outlierCount, 0)
  if (outlierCount > 0) {
    warnings.push(
      `${formatPlural(outlierCount, 'outlier')} among the times: something else was running. Repeat this on a quiet machine, or with more --rounds.`,
    )
  }
  const samples = Math.min(...all.map(({ ms }) => ms.samples))
  if (samples < MIN_ROUNDS) {
    warnings.push(
      `an arm has only ${formatPlural(samples, 'run')}: quartiles say little. Use --rounds 10 or more.`,
    )
  }
  if (all.some(({ ms }) => ms.median < MIN_MS)) {
    warnings.push(
      `some arms take less than ${MIN_MS} ms, much of which is the start of COMMAND. Let it invoke the guest, and mark when it answers.`,
    )
  }
  const omitted = runs.filter(({ sample, leftOut }) => sample && leftOut)
  if (omitted.length > 0) {
    warnings.push(
      `${formatPlural(omitted.length, 'run')} left out, the first since it was ${omitted[0]!.leftOut}. Does a VM of an earlier run still have the file mapped? COMMAND must end its VM.`,
    )
  }
  return warnings
}

export function printReport(report: Comparison, terminal: Terminal): void {
  for (const cache of caches) printTable(cache, report, terminal)
  for (const warning of report.warnings) {
    terminal.say(`warning: ${warning}`)
  }
  terminal.print(`${report.basis}; seed ${report.seed}`)
  terminal.print(machineLine(report))
}

export const machineLine = ({ kernel, cpus, cpu, node }: Comparison): string =>
  `Linux ${kernel}, ${cpus} × ${cpu}, Node ${node}`

/** Kind of the figures, and the end of their times. */
function basisOf(
  complete: boolean,
  rounds: number,
  runs: readonly Pick<ComparisonRun, 'sample'>[],
): string {
  const all = formatPlural(rounds, 'interleaved round')
  const measured = complete ? all : `${formatPlural(runs.length, 'run')}, before the end of ${all}`
  const ends = new Set(runs.flatMap(({ sample }) => sample?.until ?? []))
  const end = ends.has('ready') ? "COMMAND's ready mark" : "COMMAND's end"
  const other = ends.size > 1 ? ', or its end in runs without one' : ''
  return `medians and quartiles of ${measured}, from the restore request to ${end}${other}`
}

function printTable(cache: Cache, report: Comparison, terminal: Terminal): void {
  const figures = report[cache]
  if (figures.length === 0) return
  const fastest = figures.reduce((a, b) => (b.ms.median < a.ms.median ? b : a))
  terminal.print(terminal.style('bold', lineOf(headOf(cache, report))))
  for (const each of figures) {
    const line = lineOf(cellsOf(each))
    terminal.print(each === fastest ? terminal.style('green', line) : line)
  }
  for (const line of report.conclusions[cache]) terminal.print(line)
  terminal.print()
}

/** Headings of the columns. */
export const headOf = (cache: Cache, { base }: Comparison): string[] => [
  cache,
  ...['median', 'quartiles', `÷ ${base}`, 'faults', 'residual', 'stalled'],
]

const WIDTHS = [12, 10, 22, 22, 9, 9, 10]

function lineOf(cells: readonly string[]): string {
  return cells
    .map((cell, i) => (i === 0 ? cell.padEnd(WIDTHS[i]!) : cell.padStart(WIDTHS[i]!)))
    .join('')
}

/** Cells of a row, as text. */
export function cellsOf({ arm, ms, ratio, ...counters }: ArmFigures): string[] {
  const count = (value: number | null) => (value === null ? '–' : formatCount(value))
  return [
    arm,
    formatMs(ms.median),
    `${formatMs(ms.p25)} to ${formatMs(ms.p75)}`,
    ratio ? ratioText(ratio) : '–',
    count(counters.faults),
    count(counters.residualFaults),
    counters.stalledMs === null ? '–' : formatMs(counters.stalledMs),
  ]
}

const ratioText = ({ median, p25, p75 }: Spread): string =>
  `${median.toFixed(2)} (${p25.toFixed(2)} to ${p75.toFixed(2)})`

/** Conclusions from a table, favorable or not. */
function conclusions(cache: Cache, base: Arm | null, rows: readonly ArmFigures[]): string[] {
  const lines: string[] = []
  const rival = rows
    .filter(({ arm, ratio }) => arm !== 'auto' && ratio !== null)
    .sort((a, b) => a.ratio!.median - b.ratio!.median)[0]
  if (rival) {
    const { arm, ratio } = rival
    const { median, p25, p75 } = ratio!
    if (p25 < 1 && p75 > 1) {
      lines.push(
        `No arm is clearly faster than ${base}: ${arm} takes ${ratioText(ratio!)} of its time.`,
      )
    } else if (median < 1) {
      const times = (ratio: number) => (1 / ratio).toFixed(median > 0.5 ? 2 : 1)
      const faster = `${times(median)} times as fast as ${base} (${times(p75)} to ${times(p25)})`
      lines.push(`With a ${cache} page cache, ${arm} is fastest: ${faster}.`)
    } else {
      lines.push(
        `With a ${cache} page cache, ${base} is fastest: let the VMM map the file if it can.`,
      )
    }
  }
  const chosen = rows.find(({ arm }) => arm === 'auto')?.chosen
  if (chosen) {
    const parts = Object.entries(chosen).map(
      ([backend, count]) => `${backend} ${formatPlural(count, 'time')}`,
    )
    lines.push(`auto chose ${parts.join(' and ')}.`)
  }
  return lines
}
