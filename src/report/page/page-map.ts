import { formatAddress, formatBytes, formatPlural, PAGE } from '../format.js'
import { element, type Figure, onWidth, sharpen } from './dom.js'
import { color, onTheme, orderColor } from './theme.js'

/** Rows of the map, at most. */
const MAX_ROWS = 128

/** A page of the guest. */
export interface MapPage {
  /** First 4 KiB page. */
  readonly page: number
  /** Number of 4 KiB pages. */
  readonly pageCount: number
  /** Place in first-touch order, from 0 to 1. */
  readonly place: number
}

export interface MapContent {
  readonly memoryBytes: number
  readonly pages: readonly MapPage[]
  /** First bytes of pages that are marked on top, such as residual faults. */
  readonly marks: readonly number[]
  /**
   * Color of a place.
   * @default its color in first-touch order
   */
  readonly fillOf?: (place: number) => string
  /** Sentence about a cell's pages. */
  describe(pages: readonly MapPage[], markCount: number): string
}

interface Cell {
  readonly pages: MapPage[]
  pageCount: number
  marks: number
}

interface Grid {
  readonly columns: number
  readonly rows: number
  readonly cellPages: number
  readonly cells: Map<number, Cell>
}

/** The memory as a grid, row by row: a cell is a page, or a power of two of them. */
function makeGrid({ memoryBytes, pages, marks }: MapContent, width: number): Grid {
  const memoryPages = Math.ceil(memoryBytes / PAGE)
  // About twice as wide as high, with cells of at least two pixels.
  const wanted = Math.ceil(Math.log2(2 * memoryPages) / 2)
  const columns = 2 ** Math.max(4, Math.min(9, wanted, Math.floor(Math.log2(width / 2))))
  let cellPages = 1
  while (Math.ceil(memoryPages / cellPages) > columns * MAX_ROWS) cellPages *= 2
  const cells = new Map<number, Cell>()
  const cellAt = (page: number): Cell => {
    const index = Math.floor(page / cellPages)
    const cell = cells.get(index) ?? { pages: [], pageCount: 0, marks: 0 }
    cells.set(index, cell)
    return cell
  }
  for (const run of pages) {
    for (let page = run.page; page < run.page + run.pageCount; ) {
      const end = Math.min(run.page + run.pageCount, (Math.floor(page / cellPages) + 1) * cellPages)
      const cell = cellAt(page)
      cell.pages.push(run)
      cell.pageCount += end - page
      page = end
    }
  }
  for (const offset of marks) cellAt(Math.floor(offset / PAGE)).marks++
  const rows = Math.max(1, Math.ceil(memoryPages / cellPages / columns))
  return { columns, rows, cellPages, cells }
}

/** Draws memory as rows of cells into a figure, with a cursor for pointer and keyboard. */
export function drawPageMap(figure: Figure, content: MapContent): void {
  const canvas = element('canvas', { class: 'map' })
  const box = element('div', { class: 'cursor', hidden: '' })
  figure.stage.append(element('div', { class: 'map-frame' }, canvas, box))
  let grid: Grid | undefined
  let size = { width: 0, height: 0 }
  let at = -1

  const draw = (width: number) => {
    grid = makeGrid(content, width)
    const side = width / grid.columns
    // A row is at least three pixels, so that a narrow page stays readable.
    const height = Math.round(grid.rows * Math.max(side, 3))
    size = { width, height }
    const context = sharpen(canvas, width, height)
    paint(context, content, grid, size)
    place(at)
  }
  const place = (index: number) => {
    if (!grid) return
    at = Math.min(index, grid.columns * grid.rows - 1)
    box.hidden = at < 0
    if (at < 0) return figure.say('')
    const [column, row] = [at % grid.columns, Math.floor(at / grid.columns)]
    const [side, tall] = [size.width / grid.columns, size.height / grid.rows]
    box.style.left = `${column * side}px`
    box.style.top = `${row * tall}px`
    box.style.width = `${side}px`
    box.style.height = `${tall}px`
    figure.say(describeCell(content, grid, at))
  }
  canvas.addEventListener('pointermove', ({ offsetX, offsetY }) => {
    if (!grid) return
    const column = Math.min(grid.columns - 1, Math.floor((offsetX / size.width) * grid.columns))
    const row = Math.min(grid.rows - 1, Math.floor((offsetY / size.height) * grid.rows))
    place(Math.max(0, row) * grid.columns + Math.max(0, column))
  })
  canvas.addEventListener('pointerleave', () => place(-1))
  figure.stage.addEventListener('keydown', (event) => {
    if (!grid) return
    const target = moved(grid, Math.max(0, at), event)
    if (target === undefined) return
    event.preventDefault()
    place(at < 0 ? 0 : target)
  })
  onWidth(figure.stage, draw)
  onTheme(() => draw(size.width))
}

/** Cell that a key leads to; with Shift, the next or last one with pages. */
function moved(grid: Grid, at: number, { key, shiftKey }: KeyboardEvent): number | undefined {
  const count = grid.columns * grid.rows
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: grid.columns, ArrowUp: -grid.columns }[
    key
  ]
  if (step !== undefined && !shiftKey) return Math.max(0, Math.min(count - 1, at + step))
  if (step !== undefined) {
    const filled = [...grid.cells.keys()].sort((a, b) => a - b)
    return (step > 0 ? filled.find((i) => i > at) : filled.findLast((i) => i < at)) ?? at
  }
  return { Home: 0, End: count - 1 }[key]
}

function describeCell(content: MapContent, grid: Grid, index: number): string {
  const first = index * grid.cellPages * PAGE
  if (first >= content.memoryBytes) return 'beyond the end of the memory'
  const size = grid.cellPages === 1 ? 'a page' : formatBytes(grid.cellPages * PAGE)
  const cell = grid.cells.get(index)
  const what = cell
    ? content.describe(cell.pages, cell.marks)
    : grid.cellPages === 1
      ? 'not in the set'
      : 'no page of the set'
  const share = cell && grid.cellPages > 1 ? `${formatPlural(cell.pageCount, 'page')} of it: ` : ''
  return `${formatAddress(first)}, ${size}: ${share}${what}`
}

function paint(
  context: CanvasRenderingContext2D,
  { fillOf = orderColor }: MapContent,
  grid: Grid,
  { width, height }: { readonly width: number; readonly height: number },
): void {
  const [side, tall] = [width / grid.columns, height / grid.rows]
  context.fillStyle = color('empty')
  context.fillRect(0, 0, width, height)
  for (const [index, { pages, pageCount }] of grid.cells) {
    if (pages.length === 0) continue
    const place = pages.reduce((sum, page) => sum + page.place, 0) / pages.length
    context.globalAlpha = 0.45 + (0.55 * pageCount) / grid.cellPages
    context.fillStyle = fillOf(place)
    const [column, row] = [index % grid.columns, Math.floor(index / grid.columns)]
    context.fillRect(column * side, row * tall, side, tall)
  }
  context.globalAlpha = 1
  const marked = [...grid.cells].filter(([, { marks }]) => marks > 0)
  // Many crosses are drawn small, so that the map below them stays visible.
  const radius = marked.length > 400 ? 1.5 : 3
  for (const [index] of marked) {
    const x = ((index % grid.columns) + 0.5) * side
    const y = (Math.floor(index / grid.columns) + 0.5) * tall
    cross(context, x, y, radius)
  }
}

/** A cross, with a border that shows on every color if it has room. */
function cross(context: CanvasRenderingContext2D, x: number, y: number, radius: number): void {
  for (const name of radius > 2 ? ['surface', 'residual'] : ['residual']) {
    context.lineWidth = name === 'surface' ? 3.5 : 1.5
    context.strokeStyle = color(name)
    context.beginPath()
    context.moveTo(x - radius, y - radius)
    context.lineTo(x + radius, y + radius)
    context.moveTo(x - radius, y + radius)
    context.lineTo(x + radius, y - radius)
    context.stroke()
  }
}
