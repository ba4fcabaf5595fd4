/** How much less a page weighs than the one before that is nearer. */
const NEARNESS = 0.9

/** A copy of a column with room for more. */
export function longer<T extends Uint32Array | Uint8Array | Float32Array>(
  column: T,
  length: number,
): T {
  const copy = new (column.constructor as new (length: number) => T)(length)
  copy.set(column)
  return copy
}

/**
 * Replaces each entry of a column by the sum of those near it, without itself, which weigh less the
 * farther they are. Slots are in the order of the first touch, in which pages that belong together
 * follow each other.
 */
export function addNear(column: Float32Array): void {
  const after = new Float32Array(column.length)
  let sum = 0
  for (let slot = column.length - 1; slot >= 0; slot--) {
    after[slot] = sum
    sum = (sum + column[slot]!) * NEARNESS
  }
  sum = 0
  for (let slot = 0; slot < column.length; slot++) {
    const own = column[slot]!
    column[slot] = after[slot]! + sum
    sum = (sum + own) * NEARNESS
  }
}
