import { PageIndex } from './page-index.js'

/** Restores after which evidence weighs half as much. */
export const HALF_LIFE = 20
const DECAY = 2 ** (-1 / HALF_LIFE)
/** Effective number of restores in evidence that is as old as it can be. */
export const MEMORY = 1 / (1 - DECAY)
export const MAX_VARIANTS = 16
export const MAX_COHORTS = 64
/** Weight of a cohort's share in the estimate of one of its pages, in restores. */
const COHORT_WEIGHT = 2
/** Weight of the common estimate in that of a variant, in restores. */
const COMMON_WEIGHT = 2
/** Share of the first restore's pages that is expected to come again, and its weight in restores. */
const FIRST_SHARE = 0.9
const FIRST_WEIGHT = 2
/** A cohort takes further pages up to this number. */
const SMALL_COHORT = 32
/** A page is forgotten when no set has it and its restores weigh less than this. */
const FORGOTTEN = 2 ** -7
/** How much less everything weighs after a sudden change, and in a child of the snapshot. */
const SUDDEN = 4
const INHERITED = 32
/** Least probabilities of the cohorts of a child. */
const BANDS = [0.9, 0.5, 0.1, 0]

/** What one restore showed of the pages of its snapshot. Page numbers as in `Trace.pages`. */
export interface Observation {
  readonly variant: string | undefined
  /**
   * Faults before the application's mark, in first-touch order; of a restore with a set only the
   * late, residual and held-out ones.
   */
  readonly pages: Uint32Array
  readonly timesUs: Uint32Array
  /**
   * Pages that were prefetched, so that a touch of them is not seen; without the held-out ones.
   * `undefined`: no set, every touch was seen.
   */
  readonly prefetched: Uint32Array | undefined
  /** Pages of the set that were left out. */
  readonly heldOut: Uint32Array
  /** Mean wait of a fault, as measured in this restore, if it was. */
  readonly faultUs?: number | undefined
  /** Cost of an install per page. */
  readonly installUs?: number | undefined
  /** Handshake to mark. */
  readonly responseMs?: number | undefined
  readonly stalledMs?: number | undefined
}

/** Evidence of the restores of a variant, or of all. A column has an entry for each slot. */
export interface Scope {
  readonly name: string | undefined
  /** Restores ever. */
  restores: number
  /** Weight of the latest restore: it grows, so that all others decay without being rewritten. */
  unit: number
  /** Sum of the weights of all restores. */
  weight: number
  /** The same in the units of all restores, to compare how much variants are used. */
  use: number
  /** Weights of the restores that touched each page. */
  touched: Float32Array
  /** Weights of the restores in which a touch of it could not be seen. */
  hidden: Float32Array
  /** Share of each cohort that was touched, summed over restores that showed it; their number. */
  readonly cohortTouched: Float64Array
  readonly cohortKnown: Float64Array
}

export const newScope = (name: string | undefined, capacity: number): Scope => ({
  name,
  restores: 0,
  unit: 1,
  weight: 0,
  use: 0,
  touched: new Float32Array(capacity),
  hidden: new Float32Array(capacity),
  cohortTouched: new Float64Array(MAX_COHORTS),
  cohortKnown: new Float64Array(MAX_COHORTS),
})

/** An observation in the light of what was known before it, by slots. */
export interface Seen {
  readonly scope: number
  /** Pages that faulted and were in no set, if there was a set. */
  readonly residual: readonly number[]
  readonly heldOut: Uint32Array
  readonly heldOutTouched: readonly number[]
}

const VISIBLE = 0
const HIDDEN = 1
const HELD_OUT = 2
/** Prefetched, but touched before it was there. */
const LATE = 3

/**
 * What all restores showed of each page: touched, not touched, or unknown because the page was there
 * before the guest asked. Pages that were first touched in the same restore are a cohort, and are
 * taken to be alike: what a few held-out ones show tells of the others.
 */
export class Evidence {
  count = 0
  pages = new Uint32Array(0)
  cohorts = new Uint8Array(0)
  /** Expected time of the first touch, as a share of the time to the mark. */
  places = new Float32Array(0)
  /** Sets that have the page: bit 0 is the common one, bit i that of scope i. */
  sets = new Uint32Array(0)
  /** Number of pages in each cohort, by age. */
  readonly cohortSizes: number[] = []
  /** Scope 0 is all restores, the others are variants. */
  readonly scopes: Scope[] = [newScope(undefined, 0)]
  #index = new PageIndex()
  /** State of each slot during an observation. */
  #states = new Uint8Array(0)
  readonly #pageLimit: number

  constructor(pageLimit: number) {
    this.#pageLimit = pageLimit
  }

  get common(): Scope {
    return this.scopes[0]!
  }

  /** Slot of a page, or -1. */
  slotOf(page: number): number {
    return this.#index.get(page)
  }

  /** Number of the scope of a variant, 0 for one that is unknown. */
  scopeOf(variant: string | undefined): number {
    if (variant === undefined) return 0
    return Math.max(
      this.scopes.findIndex((scope) => scope.name === variant),
      0,
    )
  }

  observe({ variant, pages, timesUs, prefetched, heldOut, responseMs }: Observation): Seen {
    const number = variant === undefined ? 0 : this.#admit(variant)
    const scopes = number === 0 ? [this.common] : [this.common, this.scopes[number]!]
    scopes.forEach(tick)
    this.scopes[number]!.use += this.common.unit

    const hidden = this.#mark(prefetched ?? new Uint32Array(0), HIDDEN)
    const held = this.#mark(heldOut, HELD_OUT)
    const span = Math.max(1000 * (responseMs ?? 0), (timesUs.at(-1) ?? 0) + 1)
    const fresh: number[] = []
    const residual: number[] = []
    const heldTouched: number[] = []
    for (let i = 0; i < pages.length; i++) {
      const page = pages[i]!
      if (page >= this.#pageLimit) continue
      const place = timesUs[i]! / span
      let slot = this.#index.get(page)
      const isFresh = slot < 0
      if (isFresh) slot = this.#add(page, place)
      const state = this.#states[slot]
      if (isFresh) fresh.push(slot)
      if (state === HIDDEN) this.#states[slot] = LATE
      else if (state === HELD_OUT) heldTouched.push(slot)
      else residual.push(slot)
      for (const scope of scopes) scope.touched[slot]! += scope.unit
      const share = this.common.unit / this.common.touched[slot]!
      this.places[slot]! += (place - this.places[slot]!) * share
    }

    const shares = this.#cohortShares(hidden, held, residual, heldTouched, fresh.length)
    for (const scope of scopes) this.#learn(scope, hidden, shares)
    for (const slot of hidden) this.#states[slot] = VISIBLE
    for (const slot of held) this.#states[slot] = VISIBLE
    this.#found(fresh, scopes)
    const isOnDemand = prefetched === undefined
    return {
      scope: number,
      residual: isOnDemand ? [] : residual,
      heldOut: held,
      heldOutTouched: heldTouched,
    }
  }

  /** Slots of the known ones of some pages, in this state from now on. */
  #mark(pages: Uint32Array, state: number): Uint32Array {
    const slots = new Uint32Array(pages.length)
    let count = 0
    for (let i = 0; i < pages.length; i++) {
      const slot = this.#index.get(pages[i]!)
      if (slot < 0) continue
      this.#states[slot] = state
      slots[count++] = slot
    }
    return slots.subarray(0, count)
  }

  /**
   * The share of each cohort that this restore touched, NaN where it does not show it: of a cohort
   * that is partly prefetched only the held-out pages are a fair sample.
   */
  #cohortShares(
    hidden: Uint32Array,
    held: Uint32Array,
    residual: readonly number[],
    heldTouched: readonly number[],
    freshCount: number,
  ): Float64Array {
    const countIn = (slots: Iterable<number>) => {
      const counts = new Uint32Array(MAX_COHORTS)
      for (const slot of slots) counts[this.cohorts[slot]!]!++
      return counts
    }
    const known = this.count - freshCount
    const [hiddenIn, heldIn, heldTouchedIn] = [hidden, held, heldTouched].map(countIn) as [
      Uint32Array,
      Uint32Array,
      Uint32Array,
    ]
    const residualIn = countIn(residual.filter((slot) => slot < known))
    return Float64Array.from({ length: MAX_COHORTS }, (_, cohort) => {
      if (heldIn[cohort]! > 0) return heldTouchedIn[cohort]! / heldIn[cohort]!
      const size = this.cohortSizes[cohort] ?? 0
      return hiddenIn[cohort] === 0 && size > 0 ? residualIn[cohort]! / size : Number.NaN
    })
  }

  /** Hidden pages are taken to be touched as often as their cohort, where that was seen. */
  #learn(scope: Scope, slots: Uint32Array, shares: Float64Array): void {
    const { touched, hidden, unit, cohortTouched, cohortKnown } = scope
    for (let i = 0; i < slots.length; i++) {
      const slot = slots[i]!
      if (this.#states[slot] === LATE) continue
      const share = shares[this.cohorts[slot]!]!
      if (Number.isNaN(share)) hidden[slot]! += unit
      else touched[slot]! += unit * share
    }
    shares.forEach((share, cohort) => {
      if (Number.isNaN(share)) return
      cohortTouched[cohort] = cohortTouched[cohort]! * DECAY + share
      cohortKnown[cohort] = cohortKnown[cohort]! * DECAY + 1
    })
  }

  /** Makes a cohort of pages that no restore has touched before. */
  #found(slots: readonly number[], scopes: readonly Scope[]): void {
    if (slots.length === 0) return
    const sizes = this.cohortSizes
    const isFirst = sizes.length === 0
    const joins = sizes.length > 1 && sizes.at(-1)! + slots.length <= SMALL_COHORT
    if (!joins) {
      if (sizes.length === MAX_COHORTS) this.#mergeCohorts()
      sizes.push(0)
    }
    const cohort = sizes.length - 1
    const part = slots.length / (sizes[cohort]! + slots.length)
    for (const scope of this.scopes) {
      const isSeen = scopes.includes(scope)
      // Where a page is in no set, not being touched is seen.
      const known = isFirst && isSeen ? FIRST_WEIGHT : scope.weight / scope.unit
      const touched = isSeen ? (isFirst ? FIRST_WEIGHT * FIRST_SHARE : 1) : 0
      scope.cohortTouched[cohort]! += (touched - scope.cohortTouched[cohort]!) * part
      scope.cohortKnown[cohort]! += (known - scope.cohortKnown[cohort]!) * part
    }
    sizes[cohort]! += slots.length
    for (const slot of slots) this.cohorts[slot] = cohort
  }

  /** Makes one cohort of the two successive ones with the fewest pages; the first stays alone. */
  #mergeCohorts(): void {
    const sizes = this.cohortSizes
    let into = 1
    for (let i = 2; i + 1 < sizes.length; i++) {
      if (sizes[i]! + sizes[i + 1]! < sizes[into]! + sizes[into + 1]!) into = i
    }
    const both = sizes[into]! + sizes[into + 1]!
    const part = both > 0 ? sizes[into + 1]! / both : 0
    for (const scope of this.scopes) {
      for (const column of [scope.cohortTouched, scope.cohortKnown]) {
        column[into]! += (column[into + 1]! - column[into]!) * part
        column.copyWithin(into + 1, into + 2)
        column[MAX_COHORTS - 1] = 0
      }
    }
    sizes.splice(into, 2, both)
    for (let slot = 0; slot < this.count; slot++) {
      if (this.cohorts[slot]! > into) this.cohorts[slot]!--
    }
  }

  /** Makes all that was seen so far weigh less, as after a deploy in the guest. */
  discount(factor = SUDDEN): void {
    for (const scope of this.scopes) {
      scope.unit *= factor
      for (const column of [scope.cohortTouched, scope.cohortKnown]) {
        for (let cohort = 0; cohort < MAX_COHORTS; cohort++) column[cohort]! /= factor
      }
    }
  }

  /** Probability that a restore of the scope touches each page. */
  probabilities(number: number): Float32Array {
    const { common, cohorts, count } = this
    const scope = this.scopes[number]!
    const shares = new Float64Array(MAX_COHORTS)
    const factors = new Float64Array(MAX_COHORTS)
    for (let cohort = 0; cohort < this.cohortSizes.length; cohort++) {
      const known = common.cohortKnown[cohort]!
      const share = known > 0 ? common.cohortTouched[cohort]! / known : 0
      shares[cohort] = share
      const own =
        (scope.cohortTouched[cohort]! + COMMON_WEIGHT * share) /
        (scope.cohortKnown[cohort]! + COMMON_WEIGHT)
      factors[cohort] = odds(own) / odds(share)
    }
    const result = new Float32Array(count)
    const weight = COHORT_WEIGHT * common.unit
    for (let slot = 0; slot < count; slot++) {
      const known = Math.max(0, common.weight - common.hidden[slot]!) + weight
      result[slot] = (common.touched[slot]! + weight * shares[cohorts[slot]!]!) / known
    }
    if (number === 0) return result
    const ownWeight = COMMON_WEIGHT * scope.unit
    for (let slot = 0; slot < count; slot++) {
      const shifted = odds(result[slot]!) * factors[cohorts[slot]!]!
      const known = Math.max(0, scope.weight - scope.hidden[slot]!) + ownWeight
      result[slot] = (scope.touched[slot]! + (ownWeight * shifted) / (1 + shifted)) / known
    }
    return result
  }

  /** Number of the scope of a variant; a new one takes the place of the least used. */
  #admit(variant: string): number {
    const known = this.scopeOf(variant)
    if (known > 0) return known
    let number = this.scopes.length
    if (number > MAX_VARIANTS) {
      number = 1
      for (let i = 2; i <= MAX_VARIANTS; i++) {
        if (this.scopes[i]!.use < this.scopes[number]!.use) number = i
      }
    }
    for (let slot = 0; slot < this.count; slot++) this.sets[slot]! &= ~(1 << number)
    this.scopes[number] = newScope(variant, this.pages.length)
    return number
  }

  /** Evidence for a child of the snapshot: cohorts are pages that were touched about as often. */
  inherit(): void {
    const probabilities = this.probabilities(0)
    this.discount(INHERITED)
    this.sets.fill(0)
    for (const scope of this.scopes) {
      scope.restores = 0
      scope.cohortTouched.fill(0)
      scope.cohortKnown.fill(0)
    }
    const sizes = BANDS.map(() => 0)
    const { cohortTouched, cohortKnown } = this.common
    probabilities.forEach((probability, slot) => {
      const cohort = BANDS.findIndex((least) => probability >= least)
      this.cohorts[slot] = cohort
      sizes[cohort]!++
      cohortTouched[cohort]! += probability
    })
    sizes.forEach((size, cohort) => {
      cohortTouched[cohort]! /= Math.max(size, 1)
      cohortKnown[cohort] = 1
    })
    this.cohortSizes.splice(0, this.cohortSizes.length, ...sizes)
  }

  /** Forgets pages that have not been touched for long, and keeps weights small. */
  settle(): void {
    this.#forget()
    this.#normalize()
  }

  #forget(): void {
    const { touched, unit } = this.common
    const columns = this.#columns()
    let count = 0
    for (let slot = 0; slot < this.count; slot++) {
      if (this.sets[slot] !== 0 || touched[slot]! >= FORGOTTEN * unit) {
        for (const column of columns) column[count] = column[slot]!
        count++
      } else this.cohortSizes[this.cohorts[slot]!]!--
    }
    if (count === this.count) return
    for (const column of columns) column.fill(0, count)
    this.count = count
    this.#index = new PageIndex()
    for (let slot = 0; slot < count; slot++) this.#index.add(this.pages[slot]!, slot)
  }

  #normalize(): void {
    for (const scope of this.scopes) scope.use /= this.common.unit
    for (const scope of this.scopes) {
      for (const column of [scope.touched, scope.hidden]) {
        for (let slot = 0; slot < this.count; slot++) column[slot]! /= scope.unit
      }
      scope.weight /= scope.unit
      scope.unit = 1
    }
  }

  #columns(): (Uint32Array | Uint8Array | Float32Array)[] {
    const { pages, cohorts, places, sets } = this
    const ofScopes = this.scopes.flatMap(({ touched, hidden }) => [touched, hidden])
    return [pages, cohorts, places, sets, ...ofScopes]
  }

  /** Adds a page of a cohort that is there. */
  put(page: number, place: number, cohort: number, sets: number): void {
    const slot = this.#add(page, place)
    this.cohorts[slot] = cohort
    this.sets[slot] = sets
    this.cohortSizes[cohort]!++
  }

  #add(page: number, place: number): number {
    if (this.count === this.pages.length) this.reserve(Math.max(1024, 2 * this.count))
    const slot = this.count++
    this.pages[slot] = page
    this.places[slot] = place
    this.#index.add(page, slot)
    return slot
  }

  /** Makes room for as many pages. */
  reserve(capacity: number): void {
    this.pages = longer(this.pages, capacity)
    this.cohorts = longer(this.cohorts, capacity)
    this.places = longer(this.places, capacity)
    this.sets = longer(this.sets, capacity)
    this.#states = longer(this.#states, capacity)
    for (const scope of this.scopes) {
      scope.touched = longer(scope.touched, capacity)
      scope.hidden = longer(scope.hidden, capacity)
    }
  }
}

function tick(scope: Scope): void {
  scope.restores++
  scope.unit /= DECAY
  scope.weight += scope.unit
}

/** Odds of a probability that is never taken for certain. */
function odds(probability: number): number {
  const within = Math.min(0.999, Math.max(0.001, probability))
  return within / (1 - within)
}

function longer<T extends Uint32Array | Uint8Array | Float32Array>(column: T, length: number): T {
  const copy = new (column.constructor as new (length: number) => T)(length)
  copy.set(column)
  return copy
}
