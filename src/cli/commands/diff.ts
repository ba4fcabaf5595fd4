import { diffWorkingSets, type Overlap, type WorkingSet, type WorkingSetDiff } from '../../index.js'
import type { DiffArguments } from '../arguments/arguments.js'
import { drawMap, mapColumns, mapPages } from '../terminal/memory-map.js'
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

export async function diff({ a, b, firstMs }: DiffArguments, terminal: Terminal): Promise<void> {
  // Only displayed: no guest gets its bytes.
  const [first, second] = await Promise.all([a, b].map((path) => readSet(path, { trust: true })))
  const found = diffWorkingSets(first!, second!, { firstMs })
  const maps = mapsOf(found, mapColumns(terminal.columns))
  const { pageSize, memoryBytes, rankCorrelation } = found
  const pagesOf = (map: ReturnType<typeof mapPages>) => map.cells.map(({ pages }) => pages)
  terminal.emit({
    a: { path: a, ...sizeOf(first!) },
    b: { path: b, ...sizeOf(second!) },
    pageSize,
    memoryBytes,
    all: withBytes(found.all),
    firstHalf: withBytes(found.firstHalf),
    first: found.firstMs ? { ms: firstMs, ...withBytes(found.firstMs) } : null,
    zeroPages: found.zeroPages ? withBytes(found.zeroPages) : null,
    rankCorrelation: rankCorrelation ?? null,
    map: {
      cellBytes: maps.inBoth.cellBytes,
      onlyInA: pagesOf(maps.onlyInA),
      onlyInB: pagesOf(maps.onlyInB),
      inBoth: pagesOf(maps.inBoth),
    },
  })
  if (terminal.json) return
  for (const [name, path, set] of [
    ['A', a, first!],
    ['B', b, second!],
  ] as const) {
    const { pageCount, bytes, runCount } = sizeOf(set)
    terminal.print(
      `${terminal.style('bold', name)}  ${path}: ${formatPlural(pageCount, 'page')} (${formatBytes(bytes)}), ${formatPlural(runCount, 'run')}`,
    )
  }
  printOverlaps(found, firstMs, terminal)
  printMap(maps, terminal)
}

const sizeOf = ({ pageCount, bytes, runCount }: WorkingSet) => ({ pageCount, bytes, runCount })

const withBytes = (overlap: Overlap) => ({
  ...overlap,
  onlyInABytes: overlap.onlyInACount * PAGE,
  onlyInBBytes: overlap.onlyInBCount * PAGE,
  inBothBytes: overlap.inBothCount * PAGE,
})

function printOverlaps(
  { all, firstHalf, firstMs: byTime, zeroPages, rankCorrelation }: WorkingSetDiff,
  firstMs: number | undefined,
  terminal: Terminal,
): void {
  const rows: [string, Overlap | undefined][] = [
    ['all pages', all],
    ['first half', firstHalf],
    [`first ${formatMs(firstMs ?? 0)}`, byTime],
    ['zero pages', zeroPages],
  ]
  const cell = (count: number) =>
    `${formatCount(count)} (${formatBytes(count * PAGE)})`.padStart(20)
  terminal.print()
  terminal.print(
    terminal.style(
      'bold',
      `${''.padEnd(14)}${['only in A', 'in both', 'only in B'].map((name) => name.padStart(20)).join('')}   Jaccard`,
    ),
  )
  for (const [name, overlap] of rows) {
    if (!overlap) continue
    const { onlyInACount, inBothCount, onlyInBCount, jaccard } = overlap
    const cells = [onlyInACount, inBothCount, onlyInBCount].map(cell).join('')
    terminal.print(`${name.padEnd(14)}${cells}${formatShare(jaccard).padStart(10)}`)
  }
  terminal.print()
  terminal.print(
    rankCorrelation === undefined
      ? `order         fewer than two pages in both`
      : `order         rank correlation ${rankCorrelation.toFixed(2)} of the pages in both (1: the same order, 0: none, -1: reversed)`,
  )
}

type Maps = ReturnType<typeof mapsOf>

const mapsOf = (
  { onlyInA, onlyInB, inBoth, pageSize, memoryBytes }: WorkingSetDiff,
  columns: number,
) => {
  const map = (pages: Uint32Array) => mapPages({ pages, pageSize, memoryBytes }, columns)
  return { onlyInA: map(onlyInA), onlyInB: map(onlyInB), inBoth: map(inBoth) }
}

/** Character of a cell, and its color. */
const MARKS = {
  A: ['<', 'red'],
  B: ['>', 'green'],
  AB: ['×', 'yellow'],
  '': ['=', 'dim'],
} as const

function printMap({ onlyInA, onlyInB, inBoth }: Maps, terminal: Terminal): void {
  terminal.print()
  terminal.print(
    `${terminal.style('bold', 'where')}     a cell is ${formatBytes(inBoth.cellBytes)}: < pages only in A, > only in B, × of both kinds, = no difference`,
  )
  const lines = drawMap(inBoth, ({ pages }, i) => {
    const [a, b] = [onlyInA.cells[i]!.pages > 0, onlyInB.cells[i]!.pages > 0]
    if (!a && !b && pages === 0) return ' '
    const [mark, color] = MARKS[`${a ? 'A' : ''}${b ? 'B' : ''}`]
    return terminal.style(color, mark)
  })
  for (const line of lines) terminal.print(line)
}
