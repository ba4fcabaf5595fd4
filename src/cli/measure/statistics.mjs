// @ts-check
// The statistics of `compare`, of `demo` and of bench/, which runs without a build.

/**
 * @typedef {object} Summary
 * @property {number} median
 * @property {number} p25
 * @property {number} p75
 * @property {number} p99
 * @property {number} least
 * @property {number} samples
 */

/**
 * Linear interpolation between the two closest ranks.
 * @param {readonly number[]} sorted ascending and not empty
 * @param {number} share
 * @returns {number}
 */
export function quantile(sorted, share) {
  const rank = share * (sorted.length - 1)
  const low = /** @type {number} */ (sorted[Math.floor(rank)])
  const high = /** @type {number} */ (sorted[Math.ceil(rank)])
  return low + (high - low) * (rank - Math.floor(rank))
}

/**
 * Median, quartiles, p99 and minimum of the numbers among `values`; `undefined` if there are none.
 * @param {readonly (number | undefined)[]} values
 * @returns {Summary | undefined}
 */
export function summary(values) {
  const numbers = /** @type {number[]} */ (values.filter(Number.isFinite))
  const sorted = numbers.sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
  /** @param {number} share */
  const at = (share) => Math.round(quantile(sorted, share) * 1000) / 1000
  return {
    median: at(0.5),
    p25: at(0.25),
    p75: at(0.75),
    p99: at(0.99),
    least: at(0),
    samples: sorted.length,
  }
}

/**
 * Only the median.
 * @param {readonly (number | undefined)[]} values
 */
export const median = (values) => summary(values)?.median

/** As in hyperfine: ten standard deviations of a normal distribution. */
const OUTLIER = 14.826

/**
 * Whether each value is an outlier: its distance from the median, in median absolute deviations,
 * which outliers themselves do not widen.
 * @param {readonly number[]} values
 * @returns {boolean[]}
 */
export function outliers(values) {
  const middle = median(values) ?? 0
  const deviation = median(values.map((value) => Math.abs(value - middle))) ?? 0
  // Equal times but one: no scale to call that one far.
  if (deviation === 0) return values.map(() => false)
  return values.map((value) => Math.abs(value - middle) / deviation > OUTLIER)
}
