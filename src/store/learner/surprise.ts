import type { Drift } from './learner-state.js'

const DECAY = 2 ** (-1 / 5)
/** Standard deviations from what was expected that are no chance, of at least this many pages. */
const DEVIATIONS = 4
const LEAST_PAGES = 1.5
/** No page is expected, or not expected, with more certainty: of few pages each counts too much. */
const UNCERTAIN = 0.03

/** How far held-out pages of the last restores were from what was expected of them. */
export class Surprise {
  /** Squared differences beyond those that chance makes, and their variance. */
  #excess = 0
  #variance = 0
  #difference = 0

  /** Adds the held-out pages of a restore, by slots. Returns the kind of a change, if it shows one. */
  add(
    probabilities: Float32Array,
    heldOut: Uint32Array,
    touchedSlots: readonly number[],
  ): Drift['kind'] | undefined {
    const touched = new Set(touchedSlots)
    this.#scale(DECAY)
    for (const slot of heldOut) {
      const expected = Math.min(1 - UNCERTAIN, Math.max(UNCERTAIN, probabilities[slot] ?? 0.5))
      const difference = (touched.has(slot) ? 1 : 0) - expected
      const variance = expected * (1 - expected)
      this.#difference += difference
      this.#excess += difference ** 2 - variance
      this.#variance += variance * (1 - 2 * expected) ** 2
    }
    if (this.#excess < Math.max(LEAST_PAGES, DEVIATIONS * Math.sqrt(this.#variance)))
      return undefined
    const kind = this.#difference < 0 ? 'waste' : 'touches'
    this.#scale(0)
    return kind
  }

  #scale(factor: number): void {
    this.#difference *= factor
    this.#excess *= factor
    this.#variance *= factor
  }
}
