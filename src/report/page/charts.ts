import uPlot from 'uplot'
import { type Figure, onWidth } from './dom.js'
import { color, onTheme } from './theme.js'

const FONT = '12px system-ui, sans-serif'

const axis = (label: string, format: (value: number) => string): uPlot.Axis => ({
  label,
  labelFont: FONT,
  labelSize: 18,
  labelGap: 2,
  font: FONT,
  stroke: () => color('muted'),
  grid: { stroke: () => color('grid'), width: 1 },
  ticks: { stroke: () => color('grid'), width: 1 },
  values: (_, splits) => splits.map((value) => (value === null ? '' : format(value))),
})

/** Possible distances between the grid lines of counts. */
const WHOLE = Array.from({ length: 12 }, (_, i) => [1, 2, 5].map((step) => step * 10 ** i)).flat()

const cursor = {
  points: { show: false },
  drag: { setScale: false, x: false, y: false },
} as const satisfies uPlot.Cursor

/** Puts a plot into a figure: it follows the figure's width, the color scheme and the keyboard. */
function mount(
  figure: Figure,
  height: number,
  options: Omit<uPlot.Options, 'width' | 'height'>,
  data: uPlot.AlignedData,
  describe: (index: number) => string,
): void {
  let plot: uPlot | undefined
  const hooks: uPlot.Hooks.Arrays = {
    ...options.hooks,
    setCursor: [({ cursor: { idx } }) => figure.say(typeof idx === 'number' ? describe(idx) : '')],
  }
  onWidth(figure.stage, (width) => {
    if (plot) plot.setSize({ width, height })
    else plot = new uPlot({ ...options, hooks, width, height }, data, figure.stage)
  })
  onTheme(() => plot?.redraw(false, true))
  const last = data[0].length - 1
  const move = (index: number) => {
    const x = data[0][Math.max(0, Math.min(last, index))]!
    plot!.setCursor({ left: plot!.valToPos(x, 'x'), top: plot!.over.clientHeight / 2 })
  }
  figure.stage.addEventListener('keydown', (event) => {
    const at = plot?.cursor.idx ?? -1
    const step = event.shiftKey ? Math.max(1, Math.round(last / 20)) : 1
    const target = {
      ArrowRight: at + step,
      ArrowLeft: at < 0 ? last : at - step,
      Home: 0,
      End: last,
    }[event.key]
    if (target === undefined || !plot) return
    event.preventDefault()
    move(target)
  })
}

export interface Line {
  readonly color: () => string
  readonly dash: number[]
  /** Ascending. */
  readonly x: readonly number[]
  readonly y: readonly number[]
}

/** Number of ascending values up to the limit. */
export function upTo(x: readonly number[], limit: number): number {
  let [from, to] = [0, x.length]
  while (from < to) {
    const middle = (from + to) >> 1
    if (x[middle]! <= limit) from = middle + 1
    else to = middle
  }
  return from
}

/** Steps over time, one line for each entry. */
export function drawLines(
  figure: Figure,
  lines: readonly Line[],
  axes: { readonly x: string; readonly y: string },
  format: { readonly x: (value: number) => string; readonly y: (value: number) => string },
  describe: (x: number) => string,
): void {
  const data = uPlot.join(lines.map(({ x, y }) => [[...x], [...y]])) as uPlot.AlignedData
  mount(
    figure,
    300,
    {
      scales: { x: { time: false }, y: { range: (_, __, max) => [0, Math.max(1, max * 1.05)] } },
      axes: [
        { ...axis(axes.x, format.x), size: 30 },
        { ...axis(axes.y, format.y), size: 64, incrs: WHOLE },
      ],
      series: [
        {},
        ...lines.map(({ color, dash }) => ({
          stroke: color,
          width: 2,
          dash,
          spanGaps: true,
          points: { show: false },
          paths: uPlot.paths.stepped!({ align: 1 }),
        })),
      ],
      legend: { show: false },
      cursor,
    },
    data,
    (index) => describe(data[0][index]!),
  )
}

/** Bars with their numbers on top. */
export function drawBars(
  figure: Figure,
  bars: {
    readonly labels: readonly string[]
    readonly values: readonly number[]
    readonly color: () => string
    /** Top of the y axis, so that figures side by side have the same. */
    readonly max: number
  },
  axes: { readonly x: string; readonly y: string },
  format: (value: number) => string,
  describe: (index: number) => string,
): void {
  const { labels, values, max } = bars
  const data: uPlot.AlignedData = [labels.map((_, i) => i), [...values]]
  const printValues = (plot: uPlot) => {
    const { ctx, bbox } = plot
    ctx.save()
    ctx.font = `${Math.round(11 * devicePixelRatio)}px system-ui, sans-serif`
    ctx.fillStyle = color('text')
    ctx.textAlign = 'center'
    ctx.textBaseline = 'bottom'
    const room = bbox.width / labels.length
    values.forEach((value, i) => {
      const text = format(value)
      if (value === 0 || ctx.measureText(text).width > room) return
      const y = plot.valToPos(value, 'y', true) - 3 * devicePixelRatio
      ctx.fillText(text, plot.valToPos(i, 'x', true), y)
    })
    ctx.restore()
  }
  mount(
    figure,
    240,
    {
      scales: {
        x: { time: false, range: [-0.6, labels.length - 0.4] },
        y: { range: [0, Math.max(1, max * 1.12)] },
      },
      axes: [
        {
          ...axis(axes.x, (i) => labels[i] ?? ''),
          size: 30,
          splits: () => data[0] as number[],
          filter: (plot, splits) => {
            const every = Math.ceil((splits.length * 72) / Math.max(1, plot.width - 80))
            return splits.map((value, i) => (i % every === 0 ? value : null))
          },
          grid: { show: false },
        },
        { ...axis(axes.y, format), size: 64, incrs: WHOLE },
      ],
      series: [
        {},
        {
          fill: bars.color,
          stroke: bars.color,
          width: 0,
          points: { show: false },
          paths: uPlot.paths.bars!({ size: [0.75, 64], radius: 0.08 }),
        },
      ],
      legend: { show: false },
      cursor: { ...cursor, y: false },
      hooks: { draw: [printValues] },
    },
    data,
    describe,
  )
}
