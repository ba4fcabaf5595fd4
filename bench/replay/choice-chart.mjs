// @ts-check
// Which way is the fastest where, as an SVG: a row for each guest, trace and state of the page cache,
// with a mark for each arm on a logarithmic axis.
import { captionOf, colours, escaped, rounded, svg } from '../lib/svg.mjs'
import { choosable, nameOf } from './cells.mjs'

const LEFT = 250
const WIDTH = 900
const RIGHT = 40
const TOP = 60
const ROW = 22
/** Told apart by their shapes, too. */
const ARMS = /** @type {const} */ ([
  ['kernel-file', colours.grey, 'square'],
  ['page-cache', colours.purple, 'triangle'],
  ['working-set', colours.green, 'circle'],
  ['auto', colours.vermilion, 'ring'],
])

/** @param {string} shape @param {number} x @param {number} y @param {string} colour */
function mark(shape, x, y, colour) {
  switch (shape) {
    case 'square':
      return `<rect x="${x - 4}" y="${y - 4}" width="8" height="8" fill="${colour}"/>`
    case 'triangle':
      return `<path d="M${x} ${y - 5}l5 9h-10z" fill="${colour}"/>`
    case 'circle':
      return `<circle cx="${x}" cy="${y}" r="4.2" fill="${colour}"/>`
    default:
      return `<circle cx="${x}" cy="${y}" r="7.5" fill="none" stroke="${colour}" stroke-width="2"/>`
  }
}

/** @param {import('./report.mjs').Report} report */
function rowsOf({ results, choices }) {
  return choices.map(({ scene, guest, cache }) => ({
    name: `${guest}, ${scene}, ${cache}`,
    marks: ARMS.flatMap(([arm, colour, shape]) => {
      const figure = results[nameOf({ scene, guest, arm, cache })]?.responseMs
      return figure ? [{ arm, colour, shape, ...figure }] : []
    }),
  }))
}

/**
 * @param {import('./report.mjs').Report} report
 * @returns {string}
 * @throws TypeError when the arm that chooses was not measured.
 */
export function drawChoices(report) {
  const rows = rowsOf(report).filter(({ marks }) => marks.length > 1)
  if (rows.length === 0) throw new TypeError(`the chart needs auto and ${choosable.join(', ')}`)
  const values = rows.flatMap(({ marks }) => marks.map(({ median }) => median))
  const [low, high] = [
    Math.log10(Math.min(...values)) - 0.05,
    Math.log10(Math.max(...values)) + 0.05,
  ]
  const xOf = (/** @type {number} */ ms) =>
    rounded(LEFT + ((WIDTH - LEFT - RIGHT) * (Math.log10(ms) - low)) / (high - low))
  const ticks = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].filter(
    (ms) => Math.log10(ms) >= low && Math.log10(ms) <= high,
  )
  const bottom = TOP + rows.length * ROW
  const legend = ARMS.map(([arm, colour, shape], i) => {
    const x = LEFT + 10 + i * 140
    return `${mark(shape, x, 22, colour)}<text x="${x + 14}" y="26" style="fill: ${colour}; font-weight: 600">${arm}</text>`
  })
  const label = 'Time to response of each way to restore, and of the choice'
  const caption = captionOf(report.machine, `medians of up to ${report.machine.rounds} rounds`)
  return svg({ width: WIDTH, height: bottom + 70, label }, [
    ...legend,
    ...ticks.flatMap((ms) => [
      `<line class="grid" x1="${xOf(ms)}" y1="${TOP - 12}" x2="${xOf(ms)}" y2="${bottom}"/>`,
      `<text text-anchor="middle" x="${xOf(ms)}" y="${bottom + 16}">${ms.toLocaleString('en-US')}</text>`,
    ]),
    ...rows.flatMap(({ name, marks }, i) => {
      const y = TOP + i * ROW
      return [
        `<text text-anchor="end" x="${LEFT - 10}" y="${y + 4}">${escaped(name)}</text>`,
        `<line class="grid" x1="${LEFT}" y1="${y}" x2="${WIDTH - RIGHT}" y2="${y}"/>`,
        ...marks.map(({ shape, colour, median }) => mark(shape, xOf(median), y, colour)),
      ]
    }),
    `<text text-anchor="middle" x="${(LEFT + WIDTH - RIGHT) / 2}" y="${bottom + 36}">restore request to response, ms</text>`,
    `<text class="caption" x="10" y="${bottom + 58}">${caption}</text>`,
  ])
}
