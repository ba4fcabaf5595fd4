// @ts-check
// Time to response against the size of the working set, as an SVG: one panel for each state of the
// page cache, both axes logarithmic.
import { captionOf, colours, rounded, spread, svg } from '../lib/svg.mjs'
import { arms, caches, nameOf, sizes } from './cells.mjs'

const WIDTH = 900
const HEIGHT = 430
const PANEL = { width: 290, height: 290, top: 50, lefts: [70, 505] }
const MIB = 2 ** 20
const COLOURS = /** @type {Record<string, string>} */ ({
  'kernel-file': colours.grey,
  'on-demand': colours.vermilion,
  reap: colours.blue,
  'working-set': colours.green,
})

/** Powers of ten around the values. @param {readonly number[]} values */
function decades(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)]
  const first = Math.floor(Math.log10(low))
  const last = Math.max(first + 1, Math.ceil(Math.log10(high)))
  return Array.from({ length: last - first + 1 }, (_, i) => 10 ** (first + i))
}

/** @param {import('./report.mjs').Report} report */
function linesOf({ results, scenes }) {
  return caches.map((cache) =>
    arms.map((arm) => ({
      arm,
      points: sizes.flatMap((scene) => {
        const figure = results[nameOf({ scene, arm, cache })]?.responseMs
        const pages = scenes.find(({ name }) => name === scene)?.pages
        return figure && pages ? [{ mib: (pages * 4096) / MIB, ...figure }] : []
      }),
    })),
  )
}

/**
 * @param {import('./report.mjs').Report} report
 * @returns {string}
 * @throws TypeError when no size was measured.
 */
export function drawChart(report) {
  const panels = linesOf(report)
  const points = panels.flat().flatMap((line) => line.points)
  if (points.length === 0) throw new TypeError('the chart needs cells such as linux-64-of-512')
  const ticks = decades(points.flatMap(({ p25, p75 }) => [p25, p75]))
  const mibs = [...new Set(points.map(({ mib }) => mib))].sort((a, b) => a - b)
  const [low, high] = [Math.log10(ticks[0] ?? 1), Math.log10(ticks.at(-1) ?? 10)]
  const [least, most] = [Math.log2(mibs[0] ?? 1), Math.log2(mibs.at(-1) ?? 1)]
  const yOf = (/** @type {number} */ ms) =>
    rounded(PANEL.top + PANEL.height * (1 - (Math.log10(ms) - low) / (high - low)))
  const xIn = (/** @type {number} */ left) => (/** @type {number} */ mib) =>
    rounded(left + 15 + (PANEL.width - 30) * ((Math.log2(mib) - least) / Math.max(1, most - least)))

  const drawPanel = (/** @type {typeof panels[number]} */ lines, /** @type {number} */ i) => {
    const left = PANEL.lefts[i] ?? 0
    const [right, bottom] = [left + PANEL.width, PANEL.top + PANEL.height]
    const xOf = xIn(left)
    const out = [
      `<text class="title" x="${left}" y="${PANEL.top - 16}">page cache ${caches[i]}</text>`,
      ...ticks.flatMap((ms) => [
        `<line class="grid" x1="${left}" y1="${yOf(ms)}" x2="${right}" y2="${yOf(ms)}"/>`,
        `<text text-anchor="end" x="${left - 6}" y="${yOf(ms) + 4}">${ms.toLocaleString('en-US')}</text>`,
      ]),
      ...mibs.flatMap((mib) => [
        `<line class="grid" x1="${xOf(mib)}" y1="${PANEL.top}" x2="${xOf(mib)}" y2="${bottom}"/>`,
        `<text text-anchor="middle" x="${xOf(mib)}" y="${bottom + 18}">${mib.toLocaleString('en-US')}</text>`,
      ]),
      `<text text-anchor="middle" x="${left + PANEL.width / 2}" y="${bottom + 38}">working set, MiB</text>`,
    ]
    const labels = []
    for (const { arm, points } of lines) {
      const last = points.at(-1)
      if (!last) continue
      const colour = COLOURS[arm]
      const path = points.map(({ mib, median }) => `${xOf(mib)},${yOf(median)}`).join(' ')
      out.push(`<polyline data-arm="${arm}" points="${path}" stroke="${colour}"/>`)
      for (const { mib, median, p25, p75 } of points) {
        out.push(
          `<line class="whisker" x1="${xOf(mib)}" y1="${yOf(p25)}" x2="${xOf(mib)}" y2="${yOf(p75)}" stroke="${colour}"/>`,
          `<circle cx="${xOf(mib)}" cy="${yOf(median)}" r="3.2" fill="${colour}"/>`,
        )
      }
      labels.push({ arm, colour, x: xOf(last.mib) + 9, y: yOf(last.median) + 4 })
    }
    spread(labels)
    for (const { arm, colour, x, y } of labels) {
      out.push(
        `<text class="label" x="${x}" y="${rounded(y)}" style="fill: ${colour}">${arm}</text>`,
      )
    }
    return out
  }

  const caption = captionOf(
    report.machine,
    `medians and quartiles of up to ${report.machine.rounds} rounds`,
  )
  const label = 'Time to response against the size of the working set'
  return svg({ width: WIDTH, height: HEIGHT, label }, [
    `<text text-anchor="middle" transform="translate(18 ${PANEL.top + PANEL.height / 2}) rotate(-90)">restore request to response, ms</text>`,
    ...panels.flatMap(drawPanel),
    `<text class="caption" x="${PANEL.lefts[0]}" y="${HEIGHT - 12}">${caption}</text>`,
  ])
}
