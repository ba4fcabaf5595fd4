import type { Trace, WorkingSet } from '../../index.js'
import { PAGE } from './units.js'

/** The guest's memory as a grid of cells of equal size. */
export interface MemoryMap {
  readonly columns: number
  /** Bytes per cell, a power of two. */
  readonly cellBytes: number
  /** Cells, sorted by address. */
  readonly cells: readonly MapCell[]
}

export interface MapCell {
  /** Number of 4 KiB pages of the working set in the cell. */
  readonly pages: number
  /** Share of the cell's memory in the working set, 0 to 1. */
  readonly density: number
  /**
   * Mean relative rank of its pages in first-touch order, 0 (first) to 1 (last); NaN without pages.
   */
  readonly place: number
}

const MAX_ROWS = 16

/**
 * Number of columns beside the addresses for a line of this width: a power of two, so that rows
 * start at round addresses.
 */
export const mapColumns = (width: number): number =>
  2 ** Math.floor(Math.log2(Math.min(64, Math.max(16, width - 16))))

/** Draws the working set into at most `columns` × 16 cells. */
export const mapMemory = (set: WorkingSet, columns: number): MemoryMap =>
  mapPages(set.order, columns)

/** Draws pages, in first-touch order, into at most `columns` × 16 cells. */
export function mapPages(
  order: Pick<Trace, 'pages' | 'pageSize' | 'memoryBytes'>,
  columns: number,
): MemoryMap {
  const { memoryBytes } = order
  let cellBytes = PAGE
  while (Math.ceil(memoryBytes / cellBytes) > columns * MAX_ROWS) cellBytes *= 2
  const count = Math.ceil(memoryBytes / cellBytes)
  const pages = new Float64Array(count)
  const places = new Float64Array(count)
  const step = order.pageSize / PAGE
  order.pages.forEach((page, rank) => {
    const place = order.pages.length > 1 ? rank / (order.pages.length - 1) : 0
    for (let i = 0; i < step; i++) {
      const cell = Math.floor(((page * step + i) * PAGE) / cellBytes)
      pages[cell]! += 1
      places[cell]! += place
    }
  })
  const cells = Array.from(pages, (inCell, i) => {
    const bytes = Math.min(cellBytes, memoryBytes - i * cellBytes)
    return { pages: inCell, density: (inCell * PAGE) / bytes, place: places[i]! / inCell }
  })
  return { columns: Math.min(columns, count), cellBytes, cells }
}

const SHADES = '·░▒▓█'

/** Character for the density of a cell: a space if empty, else one of five shades. */
export function shade({ pages, density }: MapCell): string {
  if (pages === 0) return ' '
  return SHADES[Math.min(SHADES.length - 1, Math.floor(density * SHADES.length))]!
}

/** Digit for the mean rank of a cell, 0 to 9. */
export const digit = ({ pages, place }: MapCell): string =>
  pages === 0 ? ' ' : String(Math.min(9, Math.floor(place * 10)))

/** Lines of a map, each with its first address. */
export function drawMap(map: MemoryMap, draw: (cell: MapCell, index: number) => string): string[] {
  const last = map.cells.length * map.cellBytes
  const width = last.toString(16).length
  const lines: string[] = []
  for (let first = 0; first < map.cells.length; first += map.columns) {
    const address = (first * map.cellBytes).toString(16).padStart(width, '0')
    const cells = map.cells
      .slice(first, first + map.columns)
      .map((cell, i) => draw(cell, first + i))
    lines.push(`  0x${address} │${cells.join('')}${' '.repeat(map.columns - cells.length)}│`)
  }
  return lines
}
