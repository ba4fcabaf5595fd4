import { availableParallelism, cpus, release } from 'node:os'
import { type Cache, caches } from '../measure/page-cache.js'
import { median } from '../measure/statistics.mjs'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatCount, formatMs, formatPlural, formatShare } from '../terminal/units.js'
import { type Arm, arms, type Sample } from './arms.js'

/** Medians of the samples of an arm in one state of the page cache. */
export interface ArmResult {
  readonly responseMs: number
  readonly faults: number
  readonly lateFaults: number
  readonly residualFaults: number
  /** Response time of each round. */
  readonly samplesMs: readonly number[]
}

/** Output of `demo --json`. */
export interface DemoReport {
  /** VMM, such as `Firecracker 1.12.1`; null for the embedded guest. */
  readonly vmm: string | null
  readonly memoryBytes: number
  readonly workingSet: { readonly pages: number; readonly extents: number; readonly bytes: number }
  /** Results by arm; `cold` is null if the files could not be evicted from the page cache. */
  readonly arms: Readonly<Record<Arm, Readonly<Record<Cache, ArmResult | null>>>>
  /** Whether all restores gave the same response and the same recorded pages. */
  readonly identical: boolean
  /** Response time of on-demand divided by that of working-set. */
  readonly speedup: Readonly<Record<Cache, number | null>>
  /** A restore with the working set and a request that was not recorded. */
  readonly otherInput: {
    readonly faults: number
    readonly lateFaults: number
    readonly residualFaults: number
    readonly identical: boolean
  }
  readonly restores: number
  readonly rounds: number
  readonly folder: string
  readonly kernel: string
  readonly cpu: string
  readonly cpus: number
  readonly node: string
  /** Time of the report, as ISO 8601 in UTC. */
  readonly date: string
}

export type Samples = Readonly<Record<Arm, Readonly<Record<Cache, readonly Sample[]>>>>

const round = (value: number): number => Math.round(value * 1000) / 1000

function summarize(samples: readonly Sample[]): ArmResult | null {
  if (samples.length === 0) return null
  const of = (field: 'responseMs' | 'faults' | 'lateFaults' | 'residualFaults') =>
    median(samples.map((sample) => sample[field]))!
  return {
    responseMs: of('responseMs'),
    faults: of('faults'),
    lateFaults: of('lateFaults'),
    residualFaults: of('residualFaults'),
    samplesMs: samples.map(({ responseMs }) => round(responseMs)),
  }
}

const same = (samples: readonly Sample[]): boolean =>
  samples.every(
    ({ response, digest }) => response === samples[0]?.response && digest === samples[0]?.digest,
  )

export function makeReport(facts: {
  readonly vmm: string | null
  readonly memoryBytes: number
  readonly workingSet: DemoReport['workingSet']
  readonly samples: Samples
  /** A request that was not recorded, with the working set and on demand. */
  readonly other: readonly [Sample, Sample]
  readonly recorded: string
  readonly rounds: number
  readonly folder: string
}): DemoReport {
  const { vmm, memoryBytes, workingSet, samples, other, recorded, rounds, folder } = facts
  const all = arms.flatMap((arm) => caches.flatMap((cache) => samples[arm][cache]))
  const results = Object.fromEntries(
    arms.map((arm) => [
      arm,
      Object.fromEntries(caches.map((cache) => [cache, summarize(samples[arm][cache])])),
    ]),
  ) as Record<Arm, Record<Cache, ArmResult | null>>
  const speedup = (cache: Cache) => {
    const [slow, fast] = [results['on-demand'][cache], results['working-set'][cache]]
    return slow && fast ? round(slow.responseMs / fast.responseMs) : null
  }
  const { faults, lateFaults, residualFaults } = other[0]
  return {
    vmm,
    memoryBytes,
    workingSet,
    arms: results,
    identical: same(all) && all.every(({ response }) => response === recorded) && same(other),
    speedup: { cold: speedup('cold'), warm: speedup('warm') },
    otherInput: { faults, lateFaults, residualFaults, identical: same(other) },
    restores: all.length + other.length,
    rounds,
    folder,
    kernel: release(),
    cpu: cpus()[0]?.model.trim() ?? 'unknown',
    cpus: availableParallelism(),
    node: process.versions.node,
    date: new Date().toISOString(),
  }
}

export function printReport(report: DemoReport, terminal: Terminal): void {
  const { arms: results, workingSet, otherInput } = report
  const { pages, extents, bytes } = workingSet
  terminal.print(
    `recorded ${formatPlural(pages, 'page')} in ${formatPlural(extents, 'extent')} ` +
      `(${formatBytes(bytes)}, ${formatShare(bytes / report.memoryBytes)} of the memory)`,
  )
  terminal.print()
  printTable(report, terminal)
  terminal.print()
  for (const line of conclusions(report)) terminal.print(line)

  const { warm, cold } = results['working-set']
  const parts = [cold && `cold ${split(cold)}`, warm && `warm ${split(warm)}`].filter(Boolean)
  terminal.print(`Faults with the working set: ${parts.join('; ')}.`)
  terminal.print(
    '  late: on a page that the prefetch had not installed yet; residual: on a page outside the working set.',
  )
  terminal.print(
    `A request that was not recorded: ${formatPlural(otherInput.faults, 'fault')} (${split(otherInput)}).`,
  )
  terminal.print()
  const checked = report.vmm
    ? 'all responses, and every page that the guest touched (checked by the guest)'
    : `all responses, and all ${formatPlural(pages, 'recorded page')}`
  terminal.print(
    report.identical
      ? `identical: ${checked}, in all ${report.restores} restores`
      : terminal.style('red', 'NOT IDENTICAL: responses or recorded pages differ between restores'),
  )
  terminal.print(
    `medians of ${formatPlural(report.rounds, 'interleaved round')}, from the restore request to the response`,
  )
  terminal.print(
    `Linux ${report.kernel}, ${report.cpus} × ${report.cpu}, Node ${report.node}, ${report.date.slice(0, 10)}`,
  )
}

const split = ({ lateFaults, residualFaults }: { lateFaults: number; residualFaults: number }) =>
  `${formatCount(lateFaults)} late, ${formatCount(residualFaults)} residual`

function printTable({ arms: results }: DemoReport, terminal: Terminal): void {
  const group = (title: string) =>
    `${title.padStart(12)} ${'× on-demand'.padStart(12)} ${'faults'.padStart(8)}`
  terminal.print(terminal.style('bold', `${'arm'.padEnd(12)} ${group('cold')}  ${group('warm')}`))
  for (const arm of arms) {
    const cells = caches.map((cache) => {
      const [result, base] = [results[arm][cache], results['on-demand'][cache]]
      if (!result || !base) return `${'–'.padStart(12)} ${'–'.padStart(12)} ${'–'.padStart(8)}`
      const times = `${(base.responseMs / result.responseMs).toFixed(1)}×`
      return `${formatMs(result.responseMs).padStart(12)} ${times.padStart(12)} ${formatCount(result.faults).padStart(8)}`
    })
    const line = `${arm.padEnd(12)} ${cells.join('  ')}`
    terminal.print(arm === 'working-set' ? terminal.style('green', line) : line)
  }
}

/** Conclusions from the table, favorable or not. */
function conclusions({ arms: results }: DemoReport): string[] {
  const lines: string[] = []
  for (const cache of caches) {
    const mmap = results['kernel-file'][cache]
    const ours = results['working-set'][cache]
    if (!mmap || !ours) continue
    const [a, b] = [formatMs(mmap.responseMs), formatMs(ours.responseMs)]
    lines.push(
      mmap.responseMs < ours.responseMs
        ? `With a ${cache} page cache plain mmap (kernel-file) wins, ${a} against ${b}: let the VMM map the file if it can.`
        : `With a ${cache} page cache the working set wins against plain mmap (kernel-file), ${b} against ${a}.`,
    )
  }
  if (results['working-set'].cold === null) {
    lines.push(
      'No cold restore could be measured: this file system keeps its files in memory. Try --keep with a folder on a disk.',
    )
  }
  lines.push(
    'The faults of kernel-file are handled by the kernel, which maps several pages per fault.',
  )
  return lines
}
