import type { Evidence } from './evidence.js'
import { MEMORY } from './scope.js'

/** Share of the modelled stall that holding pages out may add, and of the response. */
const STALL_SHARE = 0.01
const RESPONSE_SHARE = 0.01
/**
 * Times of its wait that a fault costs the response if it comes alone, since threads sleep before it:
 * 65 to 137 µs for waits of 17 to 27 µs, with a guest of KVM.
 */
const LONE_FAULT = 4
/** The share of the stall is up to twice as much at first, and falls halfway in so many restores. */
const EARLY = 8

/** Times that a page is left out until it is known not to be needed. */
const TRIALS = 8
/** Part of a cohort that is left out where most of its pages may well not be needed. */
const SEARCHED = 1 / 32

export interface HoldOutCosts {
  readonly faultUs: number
  readonly installUs: number
  /** Modelled stall of a restore with the set. */
  readonly stallUs: number
  /** Mean response, if it is known. */
  readonly responseUs: number | undefined
}

/**
 * Which pages of a set the next restores leave out: more of a cohort the more its estimate is worth
 * improving (many pages, little evidence, an uncertain share), fewer the more a page costs.
 */
export class HoldOutPlan {
  readonly #cohorts: { readonly slots: readonly number[]; readonly rate: number }[] = []

  constructor(
    evidence: Evidence,
    number: number,
    probabilities: Float32Array,
    setBit: number,
    { faultUs, installUs, stallUs, responseUs }: HoldOutCosts,
  ) {
    const slotsOf: number[][] = evidence.cohortSizes.map(() => [])
    const touched = new Float64Array(evidence.cohortSizes.length)
    for (let slot = 0; slot < evidence.count; slot++) {
      if ((evidence.sets[slot]! & setBit) === 0) continue
      const cohort = evidence.cohorts[slot]!
      slotsOf[cohort]!.push(slot)
      touched[cohort]! += probabilities[slot]!
    }
    const { cohortKnown } = evidence.scopes[number]!
    const cohorts = slotsOf.flatMap((slots, cohort) => {
      if (slots.length === 0) return []
      const share = Math.min(1, touched[cohort]! / slots.length)
      const costUs = Math.max(installUs, share * faultUs)
      const known = 1 + cohortKnown[cohort]!
      const doubt =
        (slots.length * Math.sqrt(share * (1 - share) + 1 / (known + 1))) / Math.sqrt(known)
      const gainUs = (1 - share) * installUs * MEMORY
      const searched = gainUs > TRIALS * share * faultUs ? slots.length * SEARCHED : 0
      return [{ slots, searched, costUs, worth: doubt / Math.sqrt(costUs) }]
    })
    const budgetUs = Math.min(
      STALL_SHARE * (1 + EARLY / (EARLY + evidence.scopes[number]!.known)) * stallUs,
      (RESPONSE_SHARE / LONE_FAULT) * (responseUs ?? Number.POSITIVE_INFINITY),
    )
    const wholeUs = cohorts.reduce((sum, { worth, costUs }) => sum + worth * costUs, 0)
    this.#cohorts = cohorts.map(({ slots, searched, worth }) => ({
      slots,
      rate: Math.min(searched + (worth * budgetUs) / wholeUs, slots.length / 4),
    }))
  }

  /** Slots of pages to leave out, drawn anew for each restore. */
  draw(random: () => number): number[] {
    return this.#cohorts.flatMap(({ slots, rate }) => {
      const count = Math.floor(rate + random())
      const drawn = new Set<number>()
      while (drawn.size < count) drawn.add(slots[Math.floor(random() * slots.length)]!)
      return [...drawn]
    })
  }
}
