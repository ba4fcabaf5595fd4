// @ts-check
// Figures as text, and ratios with their targets.
import { summary } from '../../src/cli/measure/statistics.mjs'

/**
 * @typedef {readonly ['at least' | 'at most', number] | undefined} Aim undefined: no target
 *
 * @typedef {object} Ratio the median of `pairs` ratios and their quartiles
 * @property {number} value
 * @property {number} p25
 * @property {number} p75
 * @property {number} pairs
 * @property {'at least' | 'at most'} [bound]
 * @property {number} [target]
 * @property {boolean} [met]
 */

/** @param {number | undefined} value */
export const figure = (value, digits = 1) =>
  value === undefined || !Number.isFinite(value)
    ? '–'
    : value.toLocaleString('en-US', {
        minimumFractionDigits: digits,
        maximumFractionDigits: digits,
      })

/**
 * Ratio with its quartiles; `undefined` if there are no values.
 *
 * @param {readonly number[]} values
 * @param {Aim} [aim]
 * @returns {Ratio | undefined}
 */
export function ratioOf(values, aim) {
  const found = summary(values)
  if (!found) return undefined
  /** @type {{ median: number, p25: number, p75: number, samples: number }} */
  const { median: value, p25, p75, samples: pairs } = found
  if (!aim) return { value, p25, p75, pairs }
  const [bound, target] = aim
  const met = bound === 'at least' ? value >= target : value <= target
  return { value, p25, p75, pairs, bound, target, met }
}

/** @param {Readonly<Record<string, Ratio>>} ratios */
export function ratioLines(ratios) {
  const width = Math.max(...Object.keys(ratios).map((name) => name.length), 24)
  return Object.entries(ratios).map(([name, { value, p25, p75, bound, target, met }]) => {
    const spread = `(${figure(p25, 2)} to ${figure(p75, 2)})`
    const aim = bound ? `${bound} ${target}${met ? '' : '   missed'}` : ''
    return `${name.padEnd(width)}${figure(value, 2).padStart(12)}  ${spread.padEnd(24)}  ${aim}`.trimEnd()
  })
}
