import { longer } from './columns.js'

/** Restores after which evidence weighs half as much. */
export const HALF_LIFE = 20
const DECAY = 2 ** (-1 / HALF_LIFE)
/** The same for what sets a page apart from its cohort, which takes longer to learn. */
const PAGE_HALF_LIFE = 80
const PAGE_DECAY = 2 ** (-1 / PAGE_HALF_LIFE)
/** Restores that evidence amounts to at most, each as much as the latest. */
export const MEMORY = 1 / (1 - DECAY)
export const MAX_COHORTS = 64

/**
 * Evidence of the restores of a variant, or of all of them. Columns of pages have an entry for each
 * slot of the evidence.
 */
export class Scope {
  /** `undefined`: of all restores. */
  readonly name: string | undefined
  /** Restores ever. */
  restores = 0
  /** Weight of the latest restore: it grows, so that all others decay without being rewritten. */
  unit = 1
  /** Restores, those before the latest decayed. */
  known = 0
  /** Sum of the weights of its restores in the units of all restores, to compare how much variants are used. */
  use = 0
  /** Weights of the restores that touched each page and showed it. */
  touched: Float32Array
  /** The same as expected of its cohort: each restore that showed the page, times the cohort's share. */
  expected: Float32Array
  /** Share of each cohort that was touched, summed over restores that showed it; their number. */
  readonly cohortTouched = new Float64Array(MAX_COHORTS)
  readonly cohortKnown = new Float64Array(MAX_COHORTS)

  constructor(name: string | undefined, capacity: number) {
    this.name = name
    this.touched = new Float32Array(capacity)
    this.expected = new Float32Array(capacity)
  }

  /** Begins a restore. */
  tick(): void {
    this.restores++
    this.unit /= PAGE_DECAY
    this.known = this.known * DECAY + 1
    for (let cohort = 0; cohort < MAX_COHORTS; cohort++) {
      this.cohortTouched[cohort]! *= DECAY
      this.cohortKnown[cohort]! *= DECAY
    }
  }

  /** Adds the share of a cohort in one restore, as far as `weight` pages showed it. */
  addShare(cohort: number, share: number, weight: number): void {
    this.cohortTouched[cohort]! += share * weight
    this.cohortKnown[cohort]! += weight
  }

  /** Adds pages to a cohort that has others: `part` of it then. */
  mixCohort(cohort: number, touched: number, known: number, part: number): void {
    this.cohortTouched[cohort]! += (touched - this.cohortTouched[cohort]!) * part
    this.cohortKnown[cohort]! += (known - this.cohortKnown[cohort]!) * part
  }

  /** Makes one cohort of two successive ones; the latter is `part` of both. */
  mergeCohorts(into: number, part: number): void {
    const { cohortTouched, cohortKnown } = this
    this.mixCohort(into, cohortTouched[into + 1]!, cohortKnown[into + 1]!, part)
    for (const column of [cohortTouched, cohortKnown]) {
      column.copyWithin(into + 1, into + 2)
      column[MAX_COHORTS - 1] = 0
    }
  }

  /** Makes all that was seen so far weigh less. */
  discount(factor: number): void {
    this.unit *= factor
    this.known /= factor
    for (let cohort = 0; cohort < MAX_COHORTS; cohort++) {
      this.cohortTouched[cohort]! /= factor
      this.cohortKnown[cohort]! /= factor
    }
  }

  /** Weights in units of the latest restore, so that they stay small. */
  normalize(): void {
    for (const column of [this.touched, this.expected]) {
      for (let slot = 0; slot < column.length; slot++) column[slot]! /= this.unit
    }
    this.unit = 1
  }

  reserve(capacity: number): void {
    this.touched = longer(this.touched, capacity)
    this.expected = longer(this.expected, capacity)
  }
}
