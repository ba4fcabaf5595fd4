import { formatAddress, formatBytes, formatCount, formatMs, formatPlural } from '../format.js'
import type { FaultClass, FaultSpan, RestoreRecord } from '../page-data.js'
import { element, type Figure, onWidth, sharpen } from './dom.js'
import { niceSteps } from './strips.js'
import { color, onTheme } from './theme.js'

/** A step of a restore; times in milliseconds since its start. */
export interface Step {
  readonly name: string
  readonly from: number
  readonly to: number
  readonly note: string
}

/** Steps and spans of a restore on its own clock. */
export interface Course {
  readonly steps: readonly Step[]
  readonly marks: readonly { readonly name: string; readonly at: number }[]
  readonly faults: readonly FaultSpan[]
  readonly fetches: readonly {
    readonly from: number
    readonly to: number
    readonly waited: boolean
  }[]
  readonly installs: readonly { readonly from: number; readonly to: number }[]
  readonly removals: readonly { readonly at: number }[]
  /** End of what counts: the mark of the application, else the end of the command or session. */
  readonly end: number
}

export const CLASSES = ['on-demand', 'late', 'residual'] as const satisfies readonly FaultClass[]

export function courseOf({ backend, times, prefetch, timeline }: RestoreRecord): Course {
  const since = (time: number): number => time - times.started
  const { listening, accepted, connected, firstFetch, firstInstall, firstFault } = times
  const { prefetched, ready, closed, commandStarted, commandEnded } = times
  const step = (name: string, from?: number, to?: number, note = ''): Step[] =>
    from === undefined || to === undefined
      ? []
      : [{ name, from: since(from), to: since(Math.max(from, to)), note }]
  const steps = [
    ...step('open the files', times.started, backend === 'uffd' ? listening : firstFetch),
    ...step('command', commandStarted, commandEnded),
    ...step('VMM starts', listening, accepted),
    ...step('handshake', accepted, connected),
    ...step('fetch', firstFetch, endOf(timeline?.fetches) ?? prefetched, readNote(prefetch)),
    ...step('install', firstInstall, endOf(timeline?.installs) ?? prefetched),
  ]
  const marks = [
    { name: 'connected', at: connected },
    { name: 'first fault', at: firstFault },
    { name: 'prefetched', at: prefetched },
    { name: 'ready', at: ready },
    { name: 'end', at: closed },
  ].flatMap(({ name, at }) => (at === undefined ? [] : [{ name, at: since(at) }]))
  const shifted = <T extends { from: number; to: number }>(spans: readonly T[] = []): T[] =>
    spans.map((span) => ({ ...span, from: since(span.from), to: since(span.to) }))
  const faults = shifted(timeline?.faults)
  const last = since(ready ?? commandEnded ?? closed ?? times.started)
  return {
    steps,
    marks,
    faults,
    fetches: shifted(timeline?.fetches),
    installs: shifted(timeline?.installs),
    removals: (timeline?.removals ?? []).map(({ at }) => ({ at: since(at) })),
    end: Math.max(last, since(prefetched ?? times.started), since(connected ?? times.started)),
  }
}

const endOf = (spans: readonly { readonly to: number }[] = []): number | undefined =>
  spans.length === 0 ? undefined : spans.reduce((end, { to }) => Math.max(end, to), 0)

const readNote = (prefetch: RestoreRecord['prefetch']): string =>
  prefetch === undefined
    ? ''
    : `${formatBytes(prefetch.bytes)} read${'fetchMs' in prefetch ? ` in ${formatMs(prefetch.fetchMs)}` : ''}`

/** Rows of a waterfall, drawn by their class names. */
interface Lane {
  readonly name: string
  readonly height: number
  draw(context: CanvasRenderingContext2D, width: number, height: number): void
}

const FAULTS_HEIGHT = 72

/** Scales that waterfalls below each other share. */
export interface TimeAxis {
  readonly end: number
  readonly minWaitMs: number
  readonly maxWaitMs: number
}

/** Draws the course into a figure, with a cursor for pointer and keyboard. */
export function drawWaterfall(figure: Figure, course: Course, axis: TimeAxis): void {
  const x = (ms: number, width: number) => (ms / axis.end) * width
  const lanes: Lane[] = [
    ...course.steps.map((step) => stepLane(step, course, x)),
    ...CLASSES.map((name) => faultLane(name, course, axis, x)).filter((lane) => lane !== undefined),
    ...(course.removals.length > 0 ? [removalLane(course, x)] : []),
  ]
  const plot = element('div', { class: 'lanes' })
  const cursor = element('div', { class: 'time-cursor', hidden: '' })
  const canvases = lanes.map(({ name, height }) => {
    const canvas = element('canvas')
    plot.append(
      element('div', { class: 'lane-name' }, name),
      element('div', { class: 'lane', style: `height: ${height}px` }, canvas),
    )
    return canvas
  })
  const overlay = element('div', { class: 'overlay' }, cursor)
  const ticks = element('div', { class: 'ticks' })
  plot.append(element('div', { class: 'lane-name' }), ticks)
  figure.stage.append(element('div', { class: 'waterfall' }, plot, overlay))
  const marks = course.marks.filter(({ at }) => at <= axis.end)

  const draw = () => {
    const width = ticks.clientWidth
    lanes.forEach((lane, i) => {
      lane.draw(sharpen(canvases[i]!, width, lane.height), width, lane.height)
    })
    ticks.replaceChildren(...drawTicks(axis.end, width))
    overlay.style.left = `${ticks.offsetLeft}px`
    overlay.style.width = `${width}px`
    overlay.replaceChildren(...drawMarks(marks, axis.end, width), cursor)
  }
  onWidth(figure.stage, draw)
  onTheme(draw)

  let at = -1
  const place = (ms: number) => {
    at = Math.min(axis.end, ms)
    cursor.hidden = at < 0
    cursor.style.left = `${(100 * Math.max(0, at)) / axis.end}%`
    figure.say(at < 0 ? '' : describeAt(course, at))
  }
  const events = [
    ...course.faults.map(({ from }) => from),
    ...course.marks.map((mark) => mark.at),
    ...course.steps.map(({ from }) => from),
  ]
    .filter((ms) => ms <= axis.end)
    .sort((a, b) => a - b)
  figure.stage.addEventListener('pointermove', ({ clientX }) => {
    const { left, width } = ticks.getBoundingClientRect()
    place(clientX < left ? -1 : ((clientX - left) / width) * axis.end)
  })
  figure.stage.addEventListener('pointerleave', () => place(-1))
  figure.stage.addEventListener('keydown', (event) => {
    const step = axis.end / 200
    const target = {
      ArrowRight: event.shiftKey ? events.find((ms) => ms > at) : at < 0 ? 0 : at + step,
      ArrowLeft: event.shiftKey ? events.findLast((ms) => ms < at) : Math.max(0, at - step),
      Home: 0,
      End: axis.end,
    }[event.key]
    if (target === undefined) return
    event.preventDefault()
    place(target)
  })
}

type Scale = (ms: number, width: number) => number

/** A bar with its duration, or the spans that make it up. */
function stepLane(step: Step, course: Course, x: Scale): Lane {
  const spans =
    step.name === 'fetch' ? course.fetches : step.name === 'install' ? course.installs : []
  return {
    name: step.name,
    height: 24,
    draw(context, width, height) {
      const [from, to] = [x(step.from, width), x(step.to, width)]
      context.fillStyle = color(`step-${spans.length > 0 ? 'faint' : 'bar'}`)
      context.fillRect(from, 4, Math.max(2, to - from), height - 8)
      for (const span of spans) {
        const waited = 'waited' in span && span.waited
        context.fillStyle = color(waited ? 'waited' : 'step-bar')
        const left = x(span.from, width)
        // A read that waited for the disk fills the bar, others its middle.
        const [top, tall] = waited || step.name === 'install' ? [4, height - 8] : [8, height - 16]
        context.fillRect(left, top, Math.max(1, x(span.to, width) - left), tall)
      }
      const text = [formatMs(step.to - step.from), step.note].filter(Boolean).join(', ')
      context.font = '12px system-ui, sans-serif'
      context.textBaseline = 'middle'
      context.fillStyle = color('text')
      const size = context.measureText(text).width
      const after = Math.max(from + 2, to) + 6
      if (after + size <= width) context.fillText(text, after, height / 2)
      else if (from - 6 - size >= 0) context.fillText(text, from - 6 - size, height / 2)
      else {
        // On the bar, which has gaps: on a plate.
        const left = Math.max(3, Math.min(to, width) - 6 - size)
        context.fillStyle = color('surface')
        context.fillRect(left - 3, 5, size + 6, height - 10)
        context.fillStyle = color('text')
        context.fillText(text, left, height / 2)
      }
    },
  }
}

/** Faults of a class as marks, by time and wait. */
function faultLane(
  name: FaultClass,
  course: Course,
  { minWaitMs, maxWaitMs }: TimeAxis,
  x: Scale,
): Lane | undefined {
  const faults = course.faults.filter((fault) => fault.class === name)
  if (faults.length === 0) return undefined
  const min = Math.max(0.001, minWaitMs)
  const top = Math.log10(Math.max(2 * min, maxWaitMs) / min)
  const grid = [0.01, 0.1, 1, 10, 100, 1000].filter((ms) => ms > min && ms < maxWaitMs)
  return {
    name: `${name} faults (${formatCount(faults.length)})`,
    height: FAULTS_HEIGHT,
    draw(context, width, height) {
      const y = (ms: number) =>
        height - 6 - ((height - 12) * Math.log10(Math.max(min, ms) / min)) / top
      context.font = '10px system-ui, sans-serif'
      context.textBaseline = 'middle'
      context.lineWidth = 1
      for (const ms of grid) {
        context.strokeStyle = color('grid')
        context.beginPath()
        context.moveTo(0, y(ms))
        context.lineTo(width, y(ms))
        context.stroke()
      }
      context.fillStyle = color(name)
      context.globalAlpha = faults.length > 500 ? 0.5 : 0.9
      for (const { from, to } of faults) shapes[name](context, x(from, width), y(to - from))
      context.globalAlpha = 1
      context.fillStyle = color('muted')
      context.textAlign = 'right'
      const every = Math.ceil(13 / Math.max(1, y(1) - y(10)))
      grid.forEach((ms, i) => {
        if (i % every === 0 && y(ms) > 12) context.fillText(formatMs(ms), width - 2, y(ms) - 6)
      })
      context.textAlign = 'left'
    },
  }
}

/** A shape for each class, so that it shows without color. */
const shapes: Record<
  FaultClass,
  (context: CanvasRenderingContext2D, x: number, y: number) => void
> = {
  'on-demand': (context, x, y) => polygon(context, x, y, 12, 2.6),
  late: (context, x, y) => polygon(context, x, y, 4, 3.6),
  residual: (context, x, y) => polygon(context, x, y, 3, 4),
}

function polygon(
  context: CanvasRenderingContext2D,
  x: number,
  y: number,
  corners: number,
  radius: number,
): void {
  context.beginPath()
  for (let i = 0; i < corners; i++) {
    const angle = (2 * Math.PI * i) / corners - Math.PI / 2
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle))
  }
  context.fill()
}

function removalLane({ removals }: Course, x: Scale): Lane {
  return {
    name: `memory given back (${formatCount(removals.length)})`,
    height: 20,
    draw(context, width, height) {
      context.fillStyle = color('muted')
      for (const { at } of removals) context.fillRect(x(at, width), 4, 1.5, height - 8)
    },
  }
}

function drawTicks(end: number, width: number): HTMLElement[] {
  const isInside = (ms: number) => (ms / end) * width <= width - 50
  return niceSteps(0, end, Math.max(2, Math.floor(width / 90)))
    .filter(isInside)
    .map((ms) => element('span', { style: `left: ${(100 * ms) / end}%` }, formatMs(ms)))
}

/** Lines over all lanes, with their names in as many rows as they need. */
function drawMarks(marks: Course['marks'], end: number, width: number): HTMLElement[] {
  const rows: number[] = []
  return marks
    .toSorted((a, b) => a.at - b.at)
    .map(({ name, at }) => {
      const text = `${name} ${formatMs(at)}`
      const size = 6.6 * text.length + 10
      const x = (at / end) * width
      const isLeft = x + size > width
      const from = isLeft ? x - size : x
      const free = rows.findIndex((to) => to <= from)
      const row = free < 0 ? rows.length : free
      rows[row] = from + size
      return element(
        'div',
        { class: `mark${isLeft ? ' left' : ''}`, style: `left: ${x}px; --row: ${row}` },
        element('span', {}, text),
      )
    })
}

function describeAt(course: Course, at: number): string {
  const running = course.steps.filter(({ from, to }) => from <= at && at <= to)
  const waiting = course.faults.filter(({ from, to }) => from <= at && at <= to)
  const before = course.faults.filter(({ from }) => from <= at)
  const last = before.reduce<FaultSpan | undefined>(
    (latest, fault) => (latest && latest.from > fault.from ? latest : fault),
    undefined,
  )
  const parts = [
    running.length > 0 ? running.map(({ name }) => name).join(', ') : 'no step',
    course.faults.length > 0 &&
      `${formatPlural(before.length, 'fault')} so far, ${formatCount(waiting.length)} waiting`,
    last &&
      `last: ${last.class} at ${formatAddress(last.offset)}, ${formatMs(last.from)}, waited ${formatMs(last.to - last.from)}`,
  ]
  return `${formatMs(at)}: ${parts.filter(Boolean).join('; ')}`
}
