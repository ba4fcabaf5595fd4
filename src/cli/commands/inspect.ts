import type {
  FileReadCost,
  Manifest,
  ReadCost,
  Trace,
  WorkingSet,
  WorkingSetFinding,
} from '../../index.js'
import type { InspectArguments } from '../arguments/arguments.js'
import { drawGrowth, type Growth, growthOf } from '../terminal/growth.js'
import { printable } from '../terminal/locale.js'
import { digit, drawMap, mapColumns, mapMemory, shade } from '../terminal/memory-map.js'
import type { Terminal } from '../terminal/terminal.js'
import {
  formatBytes,
  formatCount,
  formatMs,
  formatPlural,
  formatShare,
  PAGE,
} from '../terminal/units.js'
import { readSet } from './read-set.js'

export async function inspect(
  { file, memory }: InspectArguments,
  terminal: Terminal,
): Promise<void> {
  // Only displayed: no guest gets its bytes.
  const set = await readSet(file, { trust: true })
  const order = summarizeOrder(set.order)
  const columns = mapColumns(terminal.columns)
  const map = mapMemory(set, columns)
  const growth = growthOf(set.order, columns)
  const findings = await set.findings()
  const cost = await set.readCost(memory)
  terminal.emit({
    ...set.describe(),
    findings,
    order,
    growth: growth ?? null,
    readCost: { workingSet: cost.workingSet ?? null, memoryFile: cost.memoryFile ?? null },
    map: {
      cellBytes: map.cellBytes,
      pages: map.cells.map(({ pages }) => pages),
      places: map.cells.map(({ pages, place }) => (pages === 0 ? null : Number(place.toFixed(3)))),
    },
  })
  if (terminal.json) return
  printFacts(set, order, [...proofRows(set, findings), ...costRows(cost)], terminal)
  printGrowth(set, growth, terminal)
  printRunLengths(set, terminal)
  printMap(set, map, terminal)
}

/** Statistics of the first-touch order. */
export interface OrderSummary {
  /** Time since the connection until half, 90 %, and all of the pages had been touched. */
  readonly halfMs: number
  readonly mostMs: number
  readonly lastMs: number
  /** Share of touches that continued with the next page. */
  readonly sequentialShare: number
  /** Share of touches that went to a lower address. */
  readonly backwardShare: number
}

export function summarizeOrder({ pages, timesUs }: Trace): OrderSummary {
  const times = Array.from(timesUs).sort((a, b) => a - b)
  const msAt = (share: number) => (times[Math.ceil(share * times.length) - 1] ?? 0) / 1000
  let sequential = 0
  let backward = 0
  for (let i = 1; i < pages.length; i++) {
    if (pages[i] === pages[i - 1]! + 1) sequential++
    if (pages[i]! < pages[i - 1]!) backward++
  }
  const steps = Math.max(1, pages.length - 1)
  return {
    halfMs: msAt(0.5),
    mostMs: msAt(0.9),
    lastMs: msAt(1),
    sequentialShare: sequential / steps,
    backwardShare: backward / steps,
  }
}

function printFacts(
  set: WorkingSet,
  order: OrderSummary,
  more: readonly [string, string][],
  terminal: Terminal,
): void {
  const { file, ...summary } = set.describe()
  const manifest = file?.manifest ?? {}
  const rows: [string, string | undefined][] = [
    ['file', file && `${file.path} (${formatBytes(file.fileBytes)})`],
    ['label', manifest.label],
    ['snapshot', manifest.snapshotId],
    ['made', madeBy(manifest)],
    [
      'of',
      manifest.memoryFile && `${manifest.memoryFile}, ${formatPlural(summary.runCount, 'run')}`,
    ],
    ['memory', `${formatBytes(summary.memoryBytes)} in ${formatBytes(summary.pageSize)} pages`],
    [
      'pages',
      `${formatCount(summary.pageCount)} (${formatBytes(summary.bytes)}, ${formatShare(summary.share)} of the memory)` +
        (file ? `, ${formatCount(file.zeroPageCount)} of them zero and not stored` : ''),
    ],
    [
      'extents',
      `${formatCount(summary.extentCount)}, ${(summary.pageCount / Math.max(1, summary.extentCount)).toFixed(1)} pages each` +
        (file
          ? ` (${formatCount(file.extentCount)} in ${formatPlural(file.groupCount, 'group')})`
          : ''),
    ],
    [
      'order',
      `half by ${formatMs(order.halfMs)}, 90 % by ${formatMs(order.mostMs)}, the last at ${formatMs(order.lastMs)}`,
    ],
    [
      '',
      `${formatShare(order.sequentialShare)} continued with the next page, ${formatShare(order.backwardShare)} went back`,
    ],
    ...(summary.disks ?? []).map(({ name, bytes, pageCount, extentCount }): [string, string] => [
      'disk',
      `${name}, ${formatBytes(bytes)}: ${formatPlural(pageCount, 'page')} (${formatBytes(pageCount * PAGE)}) in ${formatPlural(extentCount, 'extent')}`,
    ]),
    ['id', file?.id],
    ...more,
  ]
  for (const [name, value] of rows) {
    if (value) terminal.print(`${terminal.style('bold', name.padEnd(9))} ${printable(value)}`)
  }
}

/** Rows for the findings of this host, one per memory file; none for a trace, which has no bytes. */
function proofRows(set: WorkingSet, findings: readonly WorkingSetFinding[]): [string, string][] {
  if (set.describe().file === undefined) return []
  if (findings.length === 0) {
    const none = 'none on this host: a restore reads the memory file and compares the set'
    return [['proof', none]]
  }
  return findings.map(({ how, memoryFile, at, mismatchedPageCount, isCurrent }, i) => {
    const result =
      mismatchedPageCount > 0 ? `stale in ${formatPlural(mismatchedPageCount, 'page')}` : 'good'
    const state = isCurrent ? `${result}, unchanged since` : 'void, since that file has changed'
    const verb = how === 'written' ? 'written from' : 'compared with'
    return [i === 0 ? 'proof' : '', `${verb} ${memoryFile}, ${at}: ${state}`]
  })
}

/** Rows for what is in the page cache, one per file, and what a restore has to read. */
function costRows({ workingSet, memoryFile }: ReadCost): [string, string][] {
  const files = [
    ['this file', workingSet],
    ['memory file', memoryFile],
  ] as const
  return files
    .flatMap(([name, cost]) => (cost ? [`${name.padEnd(11)} ${describeCost(cost)}`] : []))
    .map((text, i) => [i === 0 ? 'cached' : '', text])
}

function describeCost(cost: FileReadCost): string {
  const { bytes, cachedBytes, readCount, readBytes, estimatedMs } = cost
  if (readCount === 0) return `all of ${formatBytes(bytes)}`
  const cached =
    cachedBytes === undefined
      ? 'unknown for this user; uncached'
      : `${formatBytes(cachedBytes)} of ${formatBytes(bytes)} (${formatShare(cachedBytes / bytes)}); the rest`
  const time = estimatedMs === undefined ? 'in an unknown time' : `about ${formatMs(estimatedMs)}`
  return `${cached} takes ${formatPlural(readCount, 'read')} (${formatBytes(readBytes)}), ${time}`
}

function printGrowth(set: WorkingSet, growth: Growth | undefined, terminal: Terminal): void {
  if (set.pageCount === 0) return
  terminal.print()
  if (!growth) {
    terminal.print(`${terminal.style('bold', 'growth')}    unknown: its pages have no times`)
    return
  }
  const { stepMs, pageCounts } = growth
  terminal.print(`${terminal.style('bold', 'growth')}    pages touched by then`)
  const [top, width] = [formatCount(set.pageCount), pageCounts.length]
  for (const [row, bars] of drawGrowth(growth, set.pageCount).entries()) {
    terminal.print(`${(row === 0 ? top : '').padStart(10)} │${bars}`)
  }
  const end = formatMs(stepMs * width)
  terminal.print(`${' '.repeat(12)}0 ms${end.padStart(width - 4)}`)
  const later = set.pageCount - pageCounts.at(-1)!
  if (later === 0) return
  const { lastMs } = summarizeOrder(set.order)
  terminal.print(`${' '.repeat(12)}then ${formatPlural(later, 'page')} until ${formatMs(lastMs)}`)
}

function madeBy({ createdAt, createdBy, host, kernel }: Manifest): string {
  const parts = [
    createdAt,
    createdBy && `by ${createdBy}`,
    host && `on ${host}`,
    kernel && `(Linux ${kernel})`,
  ]
  return parts.filter(Boolean).join(' ')
}

const BAR = 30

function printRunLengths(set: WorkingSet, terminal: Terminal): void {
  const { runLengths, pageCount } = set.describe()
  if (runLengths.length === 0) return
  terminal.print()
  terminal.print(terminal.style('bold', '    run length   extents     pages'))
  for (const range of runLengths) {
    const { fromPages, toPages } = range
    const name = fromPages === toPages ? `${fromPages}` : `${fromPages}–${toPages}`
    const share = range.pageCount / pageCount
    terminal.print(
      `${name.padStart(14)} ${formatCount(range.extentCount).padStart(9)} ${formatCount(range.pageCount).padStart(9)}  ` +
        `${'█'.repeat(Math.ceil(share * BAR))} ${formatShare(share)}`,
    )
  }
}

/** Early to late. */
const COLORS = ['red', 'yellow', 'green', 'cyan', 'blue'] as const

function printMap(set: WorkingSet, map: ReturnType<typeof mapMemory>, terminal: Terminal): void {
  const colorOf = (place: number) =>
    COLORS[Math.min(COLORS.length - 1, Math.floor(place * COLORS.length))]!
  terminal.print()
  terminal.print(
    `${terminal.style('bold', 'where')}     a cell is ${formatBytes(map.cellBytes)}: · ░ ▒ ▓ █ up to 20, 40, 60, 80, 100 % of it`,
  )
  const lines = drawMap(map, (cell) =>
    terminal.hasColors && cell.pages > 0
      ? terminal.style(colorOf(cell.place), shade(cell))
      : shade(cell),
  )
  for (const line of lines) terminal.print(line)
  if (set.pageCount === 0) return
  if (terminal.hasColors) {
    const legend = COLORS.map((color) => terminal.style(color, '█')).join('')
    terminal.print(`  needed early ${legend} late`)
    return
  }
  terminal.print()
  terminal.print('when      0 is the first tenth of the first-touch order, 9 the last')
  for (const line of drawMap(map, digit)) terminal.print(line)
}
