// @ts-check
// Common parts of the charts. Their colours are readable on white and on black, and distinguishable
// with red-green colour blindness (after Okabe and Ito).

export const colours = Object.freeze({
  grey: '#8a8a8a',
  vermilion: '#d55e00',
  blue: '#0080c8',
  green: '#009e73',
  purple: '#cc79a7',
})

/** A coordinate, to a tenth. @param {number} value */
export const rounded = (value) => Math.round(value * 10) / 10

/** @param {string} text */
export const escaped = (text) =>
  text.replace(/[&<>]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[sign] ?? sign)

/** Moves overlapping labels apart. @param {{ y: number }[]} labels */
export function spread(labels) {
  labels.sort((a, b) => a.y - b.y)
  for (let i = 1; i < labels.length; i++) {
    const [above, label] = [labels[i - 1], labels[i]]
    if (above && label) label.y = Math.max(label.y, above.y + 14)
  }
}

/** Machine, date and number of rounds. @param {Record<string, unknown>} machine */
export const captionOf = ({ kernel, cpu, node, commit, date }, /** @type {string} */ rounds) =>
  escaped(`${kernel}, ${cpu}, Node ${node}, ${commit}, ${String(date).slice(0, 10)}; ${rounds}`)

/**
 * @param {{ width: number, height: number, label: string }} size
 * @param {readonly string[]} lines
 */
export const svg = ({ width, height, label }, lines) =>
  `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${label}">`,
    '<style>',
    'text { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #808080 }',
    '.title { font-weight: 600; font-size: 13px } .label { font-weight: 600 } .caption { font-size: 11px }',
    '.grid { stroke: #808080; stroke-opacity: 0.25 }',
    'polyline { fill: none; stroke-width: 2; stroke-linejoin: round } .whisker { stroke-width: 1.5 }',
    '</style>',
    ...lines,
    '</svg>',
  ].join('\n')}\n`
