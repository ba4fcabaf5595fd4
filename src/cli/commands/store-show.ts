import type { SnapshotDescription } from '../../index.js'
import { describeDrift } from '../session/store-events.js'
import { printable } from '../terminal/locale.js'
import { printTable, UNKNOWN } from '../terminal/table.js'
import type { Terminal } from '../terminal/terminal.js'
import {
  formatAge,
  formatBytes,
  formatCount,
  formatMs,
  formatPlural,
  formatShare,
  PAGE,
} from '../terminal/units.js'

/** Number of restores shown. */
const SHOWN = 10

const share = (value: number | undefined) => (value === undefined ? UNKNOWN : formatShare(value))
const ms = (value: number | undefined) => (value === undefined ? UNKNOWN : formatMs(value))
const count = (value: number | undefined) => (value === undefined ? UNKNOWN : formatCount(value))

export function printSnapshot(snapshot: SnapshotDescription, terminal: Terminal): void {
  printFacts(snapshot, terminal)
  printSets(snapshot, terminal)
  printQuality(snapshot, terminal)
  printResponses(snapshot, terminal)
  printHistory(snapshot, terminal)
}

function printFacts(snapshot: SnapshotDescription, terminal: Terminal): void {
  const { key, memoryFile, memoryBytes, pageSize, id, parent, learned } = snapshot
  const drift = learned?.drift
  const rows: [string, string | undefined][] = [
    ['snapshot', key],
    ['id', id],
    ['parent', parent],
    ['of', `${memoryFile}, ${formatBytes(memoryBytes)} in ${formatBytes(pageSize)} pages`],
    ['restores', describeRestores(snapshot)],
    ['on disk', formatBytes(snapshot.diskBytes)],
    ['evidence', learned && `of ${formatPlural(learned.pageCount, 'page')}`],
    ['drift', drift && describeDrift(drift)],
  ]
  for (const [name, value] of rows) {
    if (value) terminal.print(`${terminal.style('bold', name.padEnd(9))} ${printable(value)}`)
  }
}

function describeRestores({ restoreCount, createdAt, lastRestoreAt }: SnapshotDescription): string {
  if (restoreCount === 0) return `none yet; imported ${createdAt}`
  return `${formatCount(restoreCount)} since ${createdAt}, the last ${formatAge(lastRestoreAt)} ago`
}

function printSets({ sets, learned }: SnapshotDescription, terminal: Terminal): void {
  terminal.print()
  const restores = new Map<string | undefined, number>([[undefined, learned?.restoreCount ?? 0]])
  for (const { name, restoreCount } of learned?.variants ?? []) restores.set(name, restoreCount)
  // In the manifest, the set written last is the last one.
  const common = sets.filter(({ variant }) => variant === undefined)
  const inOrder = new Set([...common, ...sets])
  const rows = [...inOrder].map(({ variant, pageCount, writtenAt }) => [
    variant === undefined ? '(common)' : printable(variant),
    formatCount(pageCount),
    formatBytes(pageCount * PAGE),
    formatAge(writtenAt),
    count(restores.get(variant)),
  ])
  // Variants that have not earned a separate set.
  const own = new Set(sets.map(({ variant }) => variant))
  for (const [variant, restoreCount] of restores) {
    if (variant === undefined || own.has(variant)) continue
    rows.push([printable(variant), UNKNOWN, UNKNOWN, UNKNOWN, count(restoreCount)])
  }
  if (rows.length === 0) terminal.print('no sets yet')
  else printTable(['sets', 'pages', 'size', 'age', 'restores'], rows, terminal)
}

function printQuality({ learned }: SnapshotDescription, terminal: Terminal): void {
  if (!learned) return
  const { quality, costs } = learned
  terminal.print()
  printTable(
    ['quality', 'residual', 'waste', 'stalled'],
    (
      [
        ['now', quality],
        ['past', quality.past],
      ] as const
    ).map(([name, { residualShare, wasteShare, stalledMs }]) => [
      name,
      ...[residualShare, wasteShare].map(share),
      ms(stalledMs),
    ]),
    terminal,
  )
  const { faultUs, installUs } = costs
  terminal.print(
    `a fault costs ${faultUs.toFixed(1)} us here, an installed page ${installUs.toFixed(2)} us`,
  )
}

function printResponses({ responses }: SnapshotDescription, terminal: Terminal): void {
  const rows = (['uffd', 'page-cache'] as const).flatMap((backend) => {
    const { warm, cold } = responses[backend]
    if (warm.weight + cold.weight === 0) return []
    return [[backend, ...[warm, cold].map((mean) => ms(mean.weight > 0 ? mean.ms : undefined))]]
  })
  if (rows.length === 0) return
  terminal.print()
  printTable(['response', 'warm', 'cold'], rows, terminal)
}

function printHistory({ history }: SnapshotDescription, terminal: Terminal): void {
  if (history.length === 0) return
  terminal.print()
  printTable(
    ['last restores', 'backend', 'prefetched', 'faults', 'late', 'residual', 'stalled', 'response'],
    history
      .slice(-SHOWN)
      .map((line) => [
        `${formatAge(line.at)} ago${line.variant === undefined ? '' : `, ${printable(line.variant)}`}`,
        line.recorded ? 'recorded' : line.trial ? `${line.backend}, a trial` : line.backend,
        line.recorded ? UNKNOWN : count(line.prefetchedPageCount),
        count(line.faults),
        line.recorded ? UNKNOWN : count(line.lateFaults),
        line.recorded ? UNKNOWN : count(line.residualFaults),
        ms(line.stalledMs),
        ms(line.responseMs),
      ]),
    terminal,
  )
}
