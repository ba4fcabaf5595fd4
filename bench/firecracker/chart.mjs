// @ts-check
// A burst of restores, as an SVG: number of VMs that have answered against time, in one panel for
// each state of the page cache.
import { median } from '../../src/cli/measure/statistics.mjs'
import { captionOf, colours, rounded, svg } from '../lib/svg.mjs'

const WIDTH = 900
const HEIGHT = 400
const PANEL = { width: 300, height: 260, top: 50, lefts: [60, 490] }
const caches = /** @type {const} */ (['cold', 'warm'])
const ARMS = /** @type {const} */ ([
  ['file', colours.grey],
  ['reap', colours.blue],
  ['before', colours.vermilion],
  ['working-set', colours.green],
])

/**
 * Median time over the rounds until the first, the second, … VM has answered.
 *
 * @param {readonly import('./sample.mjs').Sample[]} samples of one arm in one place
 */
function answersOf(samples) {
  const sorted = samples.map(({ vmMs }) => [...vmMs].sort((a, b) => a - b))
  return (sorted[0] ?? []).map((_, i) => median(sorted.map((times) => times[i] ?? NaN)) ?? NaN)
}

/** @param {import('./report.mjs').Report} report @returns {string} @throws TypeError without a burst. */
export function drawBurst(report) {
  const idle = report.samples.filter(({ busy }) => !busy)
  const most = Math.max(...idle.map(({ atOnce }) => atOnce))
  if (!(most > 1)) throw new TypeError('the chart needs several restores at once: --at-once 8')
  const panels = caches.map((cache) =>
    ARMS.flatMap(([arm, colour]) => {
      const times = answersOf(
        idle.filter((one) => one.arm === arm && one.cache === cache && one.atOnce === most),
      )
      return times.length > 0 ? [{ arm, colour, times }] : []
    }),
  )
  const latest = Math.max(...panels.flat().flatMap(({ times }) => times))
  const step = [10, 20, 50, 100, 200, 500, 1000, 2000].find((ms) => latest / ms <= 6) ?? 5000
  const end = Math.ceil(latest / step) * step
  const ticks = Array.from({ length: end / step + 1 }, (_, i) => i * step)
  const yOf = (/** @type {number} */ count) =>
    rounded(PANEL.top + PANEL.height * (1 - count / most))

  const drawPanel = (/** @type {typeof panels[number]} */ lines, /** @type {number} */ i) => {
    const left = PANEL.lefts[i] ?? 0
    const [right, bottom] = [left + PANEL.width, PANEL.top + PANEL.height]
    const xOf = (/** @type {number} */ ms) => rounded(left + (PANEL.width * ms) / end)
    const counts = [0, most / 4, most / 2, (most * 3) / 4, most].filter(Number.isInteger)
    const out = [
      `<text class="title" x="${left}" y="${PANEL.top - 16}">page cache ${caches[i]}</text>`,
      ...counts.flatMap((count) => [
        `<line class="grid" x1="${left}" y1="${yOf(count)}" x2="${right}" y2="${yOf(count)}"/>`,
        `<text text-anchor="end" x="${left - 6}" y="${yOf(count) + 4}">${count}</text>`,
      ]),
      ...ticks.flatMap((ms) => [
        `<line class="grid" x1="${xOf(ms)}" y1="${PANEL.top}" x2="${xOf(ms)}" y2="${bottom}"/>`,
        `<text text-anchor="middle" x="${xOf(ms)}" y="${bottom + 18}">${ms.toLocaleString('en-US')}</text>`,
      ]),
      `<text text-anchor="middle" x="${left + PANEL.width / 2}" y="${bottom + 38}">ms since the start of all</text>`,
    ]
    /** @type {{ arm: string, colour: string, x: number, y: number }[]} */
    const labels = []
    lines.forEach(({ arm, colour, times }, number) => {
      // A step up for each VM that answers.
      const corners = times.flatMap((ms, k) => [`${xOf(ms)},${yOf(k)}`, `${xOf(ms)},${yOf(k + 1)}`])
      out.push(`<polyline data-arm="${arm}" points="${corners.join(' ')}" stroke="${colour}"/>`)
      labels.push({ arm, colour, x: right + 9, y: PANEL.top + 14 * number + 4 })
    })
    for (const { arm, colour, x, y } of labels) {
      out.push(
        `<text class="label" x="${x}" y="${rounded(y)}" style="fill: ${colour}">${arm}</text>`,
      )
    }
    return out
  }

  const { rounds } = report.machine
  return svg({ width: WIDTH, height: HEIGHT, label: 'VMs that have answered against time' }, [
    `<text text-anchor="middle" transform="translate(18 ${PANEL.top + PANEL.height / 2}) rotate(-90)">VMs that have answered</text>`,
    ...panels.flatMap(drawPanel),
    `<text class="caption" x="${PANEL.lefts[0]}" y="${HEIGHT - 12}">${captionOf(report.machine, `medians of ${rounds} rounds`)}</text>`,
  ])
}
