/** Linear interpolation between the two closest ranks; `sorted` is ascending and not empty. */
export function quantile(sorted, share) {
  const rank = share * (sorted.length - 1)
  const low = Math.floor(rank)
  const high = Math.ceil(rank)
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - low)
}

/**
 * Median, quartiles, p99 and minimum of the numbers among `values`; `undefined` if there are none.
 */
export function summary(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
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

/** Only the median. */
export const median = (values) => summary(values)?.median
