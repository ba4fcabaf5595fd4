import type { WorkingSet } from '../../index.js'

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

const PAGE = 4096
const MAX_ROWS = 16

/** Draws the working set into at most `columns` × 16 cells. */
export function mapMemory(set: WorkingSet, columns: number): MemoryMap {
  let cellBytes = PAGE
  while (Math.ceil(set.memoryBytes / cellBytes) > columns * MAX_ROWS) cellBytes *= 2
  const count = Math.ceil(set.memoryBytes / cellBytes)
  const pages = new Float64Array(count)
  const places = new Float64Array(count)
  const { order } = set
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
    const bytes = Math.min(cellBytes, set.memoryBytes - i * cellBytes)
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
export function drawMap(map: MemoryMap, draw: (cell: MapCell) => string): string[] {
  const last = map.cells.length * map.cellBytes
  const width = last.toString(16).length
  const lines: string[] = []
  for (let first = 0; first < map.cells.length; first += map.columns) {
    const address = (first * map.cellBytes).toString(16).padStart(width, '0')
    const cells = map.cells.slice(first, first + map.columns).map(draw)
    lines.push(`  0x${address} │${cells.join('')}${' '.repeat(map.columns - cells.length)}│`)
  }
  return lines
}
