import type { Spread } from '../page-data.js'
import { element, type Figure, onWidth, sharpen } from './dom.js'
import { color, onTheme } from './theme.js'

/** A value of one run. */
export interface Dot {
  readonly value: number
  /** Its row from the top, from 0. */
  readonly row: number
  readonly kind: 'counted' | 'outlier' | 'left-out'
  readonly text: string
}

/** The values of an arm. */
export interface Strip {
  readonly name: string
  readonly spread: Spread | null
  readonly dots: readonly Dot[]
}

/** The axis that strips share. */
export interface Scale {
  /** Place of a value: 0 is the left end, 1 the right one. */
  readonly place: (value: number) => number
  readonly ticks: (wanted: number) => number[]
  readonly format: (value: number) => string
  /** Value that gets a line over all strips. */
  readonly line?: number | undefined
}

/** A scale from 0 to a little beyond the maximum. */
export function linearScale(
  values: readonly number[],
  format: Scale['format'],
  isWhole: boolean,
): Scale {
  const end = 1.06 * values.reduce((max, value) => Math.max(max, value), 0) || 1
  return {
    place: (value) => value / end,
    ticks: (wanted) => niceSteps(0, end, isWhole ? Math.min(end, wanted) : wanted),
    format,
  }
}

/** A logarithmic scale around 1. */
export function ratioScale(values: readonly number[], format: Scale['format']): Scale {
  const positive = values.filter((value) => value > 0)
  const from = positive.reduce((min, value) => Math.min(min, value), 1) / 1.1
  const to = positive.reduce((max, value) => Math.max(max, value), 1) * 1.1
  return {
    place: (value) => Math.log(value / from) / Math.log(to / from),
    ticks(wanted) {
      if (to / from < 4) return niceSteps(from, to, wanted)
      const low = Math.floor(Math.log10(from))
      const decades = Array.from({ length: Math.ceil(Math.log10(to)) - low + 1 }, (_, i) => low + i)
      const [fine = [], coarse = []] = [[1, 2, 5], [1]].map((factors) =>
        decades
          .flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`)))
          .filter((tick) => tick >= from && tick <= to),
      )
      return fine.length <= wanted ? fine : coarse
    },
    format,
    line: 1,
  }
}

/** Multiples of 1, 2 or 5 times a power of ten, about as many as wanted. */
export function niceSteps(from: number, to: number, wanted: number): number[] {
  const min = (to - from) / Math.max(1, wanted)
  const power = 10 ** Math.floor(Math.log10(min))
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= min) ?? 10)
  const first = Math.ceil(from / step)
  return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, i) =>
    Number(((first + i) * step).toPrecision(6)),
  )
}

const MIN_HEIGHT = 44
const EDGE = 8

/**
 * Draws a strip for each arm, below each other: the band is from the lower to the upper quartile,
 * the line in it the median. Dots beyond an end are drawn there, as arrows.
 */
export function drawStrips(figure: Figure, strips: readonly Strip[], scale: Scale): void {
  const rows = Math.max(1, ...strips.flatMap(({ dots }) => dots.map(({ row }) => row + 1)))
  const height = Math.max(MIN_HEIGHT, Math.min(120, 2 * EDGE + 4 * rows))
  const radius = rows > 25 ? 2.2 : 3.2
  const plot = element('div', { class: 'lanes' })
  const canvases = strips.map(({ name, spread }) => {
    const canvas = element('canvas')
    const median = spread
      ? element('div', { class: 'lane-figure' }, scale.format(spread.median))
      : undefined
    plot.append(
      element('div', { class: 'lane-name' }, name, median),
      element('div', { class: 'lane', style: `height: ${height}px` }, canvas),
    )
    return canvas
  })
  const ticks = element('div', { class: 'ticks' })
  plot.append(element('div', { class: 'lane-name' }), ticks)
  figure.stage.append(plot)

  let chosen: { readonly strip: number; readonly dot: Dot } | undefined
  const at = ({ value, row }: Dot, width: number): [x: number, y: number] => [
    Math.min(width - EDGE, Math.max(EDGE / 2, scale.place(value) * width)),
    rows === 1 ? height / 2 : EDGE + (row / (rows - 1)) * (height - 2 * EDGE),
  ]
  const drawLane = (strip: Strip, canvas: HTMLCanvasElement, width: number) => {
    const context = sharpen(canvas, width, height)
    const vertical = (value: number, name: string, lineWidth: number) => {
      context.fillStyle = color(name)
      context.fillRect(scale.place(value) * width - lineWidth / 2, 0, lineWidth, height)
    }
    for (const tick of ticksAt(scale, width)) vertical(tick, 'grid', 1)
    if (strip.spread) {
      const [from, to] = [strip.spread.p25, strip.spread.p75].map(scale.place) as [number, number]
      context.fillStyle = color('step-faint')
      context.fillRect(from * width, 2, Math.max(3, (to - from) * width), height - 4)
    }
    if (scale.line !== undefined) vertical(scale.line, 'muted', 1)
    if (strip.spread) vertical(strip.spread.median, 'text', 2)
    for (const dot of strip.dots) {
      const [x, y] = at(dot, width)
      shapes[shapeOf(dot, scale)](context, x, y, radius)
      if (dot !== chosen?.dot) continue
      context.strokeStyle = color('text')
      context.lineWidth = 1.5
      context.beginPath()
      context.arc(x, y, radius + 4, 0, 2 * Math.PI)
      context.stroke()
    }
  }
  const draw = () => {
    const width = ticks.clientWidth
    strips.forEach((strip, i) => {
      drawLane(strip, canvases[i]!, width)
    })
    ticks.replaceChildren(
      ...ticksAt(scale, width).map((tick) =>
        element(
          'span',
          { style: `left: ${100 * scale.place(tick)}%` },
          tick === 0 ? '0' : scale.format(tick),
        ),
      ),
    )
  }
  onWidth(figure.stage, draw)
  onTheme(draw)

  const choose = (next: typeof chosen) => {
    if (next?.dot === chosen?.dot) return
    chosen = next
    figure.say(next ? `${strips[next.strip]!.name}, ${next.dot.text}` : '')
    draw()
  }
  listenToPointer(plot, canvases, (strip, x, y) => {
    const width = ticks.clientWidth
    const far = (dot: Dot) => Math.hypot(at(dot, width)[0] - x, at(dot, width)[1] - y)
    const [nearest] = strips[strip]?.dots.toSorted((a, b) => far(a) - far(b)) ?? []
    choose(nearest && { strip, dot: nearest })
  })
  figure.stage.addEventListener('keydown', (event) => {
    const next = neighbor(strips, chosen, event.key)
    if (next === undefined) return
    event.preventDefault()
    choose(next)
  })
}

function shapeOf({ value, kind }: Dot, { place }: Scale): keyof typeof shapes {
  if (place(value) > 1) return 'beyond'
  return place(value) < 0 ? 'before' : kind
}

const ticksAt = (scale: Scale, width: number): number[] =>
  scale.ticks(Math.floor(width / 60)).filter((tick) => scale.place(tick) * width < width - 44)

type Chosen = { readonly strip: number; readonly dot: Dot }

/** The dot that a key leads to: left and right by value, up and down to the arm above or below. */
function neighbor(
  strips: readonly Strip[],
  chosen: Chosen | undefined,
  key: string,
): Chosen | undefined {
  const filled = strips.flatMap(({ dots }, strip) => (dots.length > 0 ? [strip] : []))
  const first = filled[0]
  if (first === undefined) return undefined
  const sorted = (strip: number) => strips[strip]!.dots.toSorted((a, b) => a.value - b.value)
  const isArrow = key.startsWith('Arrow')
  if (!chosen) return isArrow ? { strip: first, dot: sorted(first)[0]! } : undefined
  const { strip, dot } = chosen
  const dots = sorted(strip)
  const place = dots.indexOf(dot)
  const step = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: dots.length - 1 }[key]
  if (step !== undefined) return { strip, dot: dots[step] ?? dot }
  const turn = { ArrowDown: 1, ArrowUp: -1 }[key]
  if (turn === undefined) return undefined
  const other = filled[filled.indexOf(strip) + turn]
  if (other === undefined) return chosen
  const same = strips[other]!.dots.find(({ row }) => row === dot.row)
  return { strip: other, dot: same ?? strips[other]!.dots[0]! }
}

function listenToPointer(
  plot: HTMLElement,
  canvases: readonly HTMLCanvasElement[],
  onPlace: (strip: number, x: number, y: number) => void,
): void {
  plot.addEventListener('pointermove', ({ clientX, clientY }) => {
    const boxes = canvases.map((canvas) => canvas.getBoundingClientRect())
    const strip = boxes.findIndex(({ top, bottom }) => clientY >= top && clientY <= bottom)
    const box = boxes[strip]
    if (box) onPlace(strip, clientX - box.left, clientY - box.top)
  })
  plot.addEventListener('pointerleave', () => onPlace(-1, 0, 0))
}

type Shape = (context: CanvasRenderingContext2D, x: number, y: number, radius: number) => void

/** A shape for each kind of run, so that it shows without color. */
export const shapes: Record<Dot['kind'] | 'beyond' | 'before', Shape> = {
  counted(context, x, y, radius) {
    context.fillStyle = color('step-bar')
    context.beginPath()
    context.arc(x, y, radius, 0, 2 * Math.PI)
    context.fill()
  },
  outlier(context, x, y, radius) {
    triangle(context, x, y, 1.6 * radius, -Math.PI / 2)
  },
  beyond(context, x, y, radius) {
    triangle(context, x, y, 1.8 * radius, 0)
  },
  before(context, x, y, radius) {
    triangle(context, x, y, 1.8 * radius, Math.PI)
  },
  'left-out'(context, x, y, radius) {
    context.strokeStyle = color('muted')
    context.lineWidth = 1.5
    context.beginPath()
    for (const turn of [-1, 1]) {
      context.moveTo(x - radius, y - turn * radius)
      context.lineTo(x + radius, y + turn * radius)
    }
    context.stroke()
  },
}

function triangle(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  radius: number,
  direction: number,
): void {
  context.fillStyle = color('residual')
  context.beginPath()
  for (let i = 0; i < 3; i++) {
    const angle = direction + (2 * Math.PI * i) / 3
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle))
  }
  context.fill()
}
