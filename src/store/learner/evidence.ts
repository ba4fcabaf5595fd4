import { addNear, longer } from './columns.js'
import type { Observation, Seen } from './observation.js'
import { PageIndex } from './page-index.js'
import { MAX_COHORTS, Scope } from './scope.js'

export const MAX_VARIANTS = 16
/** Weight of a cohort in the estimate of one of its pages, in restores. */
const COHORT_WEIGHT = 1
/** Pages near it, of which each is known, that the cohort weighs as much as. */
const NEAR_PRIOR = 4
/** Weight of the common estimate in that of a variant, in restores. */
const COMMON_WEIGHT = 2
/** Share of the first restore's pages that is expected to come again, and its weight in restores. */
const FIRST_SHARE = 0.9
const FIRST_WEIGHT = 2
/** A cohort takes further pages up to this number. */
const SMALL_COHORT = 32
/** Least number of pages, as much as the mean one each, that show the share of a cohort. */
const LEAST_SAMPLE = 0.5
/** A page is forgotten when no set has it and the restores that touched it weigh less than this. */
const FORGOTTEN = 2 ** -7
/** How much less everything weighs after a sudden change. */
const SUDDEN = 4

/**
 * What all restores showed of each page: touched, not touched, or unknown because the page was there
 * before the guest asked.
 *
 * Pages that were first touched in the same restore are a cohort. Its share is the part of it that a
 * restore touches, and a few pages that can be seen tell it for those that cannot. The probability
 * of a page is its cohort's share times its own ratio: how often it was touched when it could be
 * seen, over what its cohort let expect.
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
  readonly scopes: Scope[] = [new Scope(undefined, 0)]
  #index = new PageIndex()
  /** Number of the observation that has last prefetched or held out each slot. */
  #hiddenBy = new Uint32Array(0)
  #heldOutBy = new Uint32Array(0)
  #observations = 0
  /** Of each scope, as long as nothing is learned. */
  readonly #ratios = new Map<Scope, Float32Array>()
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
    const number = this.scopes.findIndex(({ name }) => name === variant)
    return Math.max(number, 0)
  }

  /** Learns from restores, in the light of what was known before the first of them. */
  observe(observations: readonly Observation[]): Seen[] {
    const seen = observations.map((observation) => this.#observe(observation))
    this.#ratios.clear()
    return seen
  }

  #observe({ variant, pages, timesUs, prefetched, heldOut, responseMs }: Observation): Seen {
    const number = variant === undefined ? 0 : this.#admit(variant)
    const scope = this.scopes[number]!
    const scopes = new Set([this.common, scope])
    for (const each of scopes) each.tick()
    scope.use += this.common.unit

    const now = ++this.#observations
    const hidden = this.#mark(prefetched ?? new Uint32Array(0), this.#hiddenBy)
    const held = this.#mark(heldOut, this.#heldOutBy)
    const known = this.count
    if (prefetched) this.#addUnknown(prefetched)
    const span = Math.max(1000 * (responseMs ?? 0), (timesUs.at(-1) ?? 0) + 1)
    const touched = new Uint8Array(known)
    const residual: number[] = []
    const late: number[] = []
    const heldOutTouched: number[] = []
    for (let i = 0; i < pages.length; i++) {
      const page = pages[i]!
      if (page >= this.#pageLimit) continue
      const place = timesUs[i]! / span
      let slot = this.#index.get(page)
      if (slot < 0) slot = this.#add(page, place)
      else touched[slot] = 1
      if (this.#hiddenBy[slot] === now) late.push(slot)
      else if (this.#heldOutBy[slot] === now) heldOutTouched.push(slot)
      else residual.push(slot)
      const { unit, touched: weights } = this.common
      this.places[slot]! += ((place - this.places[slot]!) * unit) / (weights[slot]! + unit)
    }

    // Before anything is learned: the ratios of a variant depend on the common evidence.
    const ratios = Array.from(scopes, (each) => this.#ratiosIn(each))
    const isPart = new Uint8Array(MAX_COHORTS)
    for (let i = 0; i < hidden.length; i++) isPart[this.cohorts[hidden[i]!]!] = 1
    const visible = this.#visible(known, known - hidden.length)
    for (const each of scopes) {
      this.#learn(each, ratios.shift()!, visible, touched, isPart)
      for (const slot of late) {
        each.touched[slot]! += each.unit
        each.expected[slot]! += each.unit
      }
    }
    this.#found(known, scopes)
    const isOnDemand = prefetched === undefined
    return { scope: number, residual: isOnDemand ? [] : residual, heldOut: held, heldOutTouched }
  }

  /**
   * Adds prefetched pages without evidence, which is then younger than their set. They are taken to
   * be touched, as they were when the set was made.
   */
  #addUnknown(prefetched: Uint32Array): void {
    for (let i = 0; i < prefetched.length; i++) {
      const page = prefetched[i]!
      if (page >= this.#pageLimit || this.#index.get(page) >= 0) continue
      const slot = this.#add(page, i / prefetched.length)
      this.#hiddenBy[slot] = this.#observations
    }
  }

  /** Slots below `end` whose touches can be seen. */
  #visible(end: number, count: number): Uint32Array {
    const slots = new Uint32Array(count)
    const [marks, now] = [this.#hiddenBy, this.#observations]
    let at = 0
    for (let slot = 0; slot < end; slot++) if (marks[slot] !== now) slots[at++] = slot
    return slots
  }

  /** Slots of the known ones of some pages, each once, marked with the observation's number. */
  #mark(pages: Uint32Array, marks: Uint32Array): Uint32Array {
    const slots = new Uint32Array(pages.length)
    let count = 0
    for (let i = 0; i < pages.length; i++) {
      const slot = this.#index.get(pages[i]!)
      if (slot < 0 || marks[slot] === this.#observations) continue
      marks[slot] = this.#observations
      slots[count++] = slot
    }
    return slots.subarray(0, count)
  }

  /**
   * Learns from the pages that could be seen in a restore.
   *
   * @param touched  of each slot, whether it was
   * @param isPart   of each cohort, whether a part of it was hidden
   */
  #learn(
    scope: Scope,
    ratios: Float32Array,
    visible: Uint32Array,
    touched: Uint8Array,
    isPart: Uint8Array,
  ): void {
    const { cohorts } = this
    const seenIn = new Float64Array(MAX_COHORTS)
    const touchedIn = new Float64Array(MAX_COHORTS)
    for (const slot of visible) {
      const cohort = cohorts[slot]!
      if (isPart[cohort] === 0) seenIn[cohort]! += 1
      // Of a cohort of which a part is prefetched, only held-out pages are like that part.
      else if (this.#heldOutBy[slot] === this.#observations) seenIn[cohort]! += ratios[slot] ?? 1
      else continue
      touchedIn[cohort]! += touched[slot]!
    }
    const shares = this.#cohortShares(scope)
    this.cohortSizes.forEach((_, cohort) => {
      const seen = seenIn[cohort]!
      if (seen < LEAST_SAMPLE) return
      scope.addShare(cohort, Math.min(1, touchedIn[cohort]! / seen), Math.min(1, seen))
      shares[cohort] = (shares[cohort]! + touchedIn[cohort]!) / (1 + seen)
    })
    const { unit } = scope
    for (const slot of visible) {
      scope.touched[slot]! += unit * touched[slot]!
      scope.expected[slot]! += unit * shares[cohorts[slot]!]!
    }
  }

  /** Makes a cohort of the pages that no restore before has touched: the slots from `first` on. */
  #found(first: number, scopes: ReadonlySet<Scope>): void {
    const fresh = this.count - first
    if (fresh === 0) return
    const sizes = this.cohortSizes
    const isFirst = sizes.length === 0
    const joins = sizes.length > 1 && sizes.at(-1)! + fresh <= SMALL_COHORT
    if (!joins) {
      if (sizes.length === MAX_COHORTS) this.#mergeCohorts()
      sizes.push(0)
    }
    const cohort = sizes.length - 1
    sizes[cohort]! += fresh
    for (const scope of this.scopes) {
      const isSeen = scopes.has(scope)
      // As long as a page is in no set, it shows that it is not touched.
      const known = isFirst && isSeen ? FIRST_WEIGHT : scope.known
      const touched = isSeen ? (isFirst ? FIRST_WEIGHT * FIRST_SHARE : 1) : 0
      scope.mixCohort(cohort, touched, known, fresh / sizes[cohort]!)
    }
    for (let slot = first; slot < this.count; slot++) {
      this.cohorts[slot] = cohort
    }
  }

  /** Makes one cohort of the two successive ones with the fewest pages; the first stays alone. */
  #mergeCohorts(): void {
    const sizes = this.cohortSizes
    let into = 1
    for (let i = 2; i + 1 < sizes.length; i++) {
      if (sizes[i]! + sizes[i + 1]! < sizes[into]! + sizes[into + 1]!) into = i
    }
    const both = sizes[into]! + sizes[into + 1]!
    for (const scope of this.scopes) scope.mergeCohorts(into, sizes[into + 1]! / Math.max(1, both))
    sizes.splice(into, 2, both)
    for (let slot = 0; slot < this.count; slot++) {
      if (this.cohorts[slot]! > into) this.cohorts[slot]!--
    }
  }

  /** Expected share of each cohort in a restore of the scope. */
  #cohortShares(scope: Scope): Float64Array {
    const { common } = this
    return Float64Array.from({ length: MAX_COHORTS }, (_, cohort) => {
      const known = common.cohortKnown[cohort]!
      const share = known > 0 ? common.cohortTouched[cohort]! / known : 0
      if (scope === common) return share
      const touched = scope.cohortTouched[cohort]! + COMMON_WEIGHT * share
      return touched / (scope.cohortKnown[cohort]! + COMMON_WEIGHT)
    })
  }

  /** How often each page is touched in restores of the scope, over the share of its cohort. */
  #ratiosIn(scope: Scope): Float32Array {
    const known = this.#ratios.get(scope)
    if (known) return known
    const { common, cohorts, count } = this
    const ratios = new Float32Array(count).fill(1)
    if (scope !== common) ratios.set(this.#ratiosIn(common))
    const { touched, expected, unit } = scope
    const priors = this.#cohortShares(scope).map((share) => COHORT_WEIGHT * unit * (share + 1e-3))
    const weights = new Float32Array(count)
    const weighted = new Float32Array(count)
    for (let slot = 0; slot < count; slot++) {
      const prior = priors[cohorts[slot]!]!
      const ratio = (touched[slot]! + prior * ratios[slot]!) / (expected[slot]! + prior)
      weights[slot] = expected[slot]! / (expected[slot]! + unit)
      weighted[slot] = weights[slot]! * ratio
    }
    addNear(weights)
    addNear(weighted)
    for (let slot = 0; slot < count; slot++) {
      const near = (weighted[slot]! + NEAR_PRIOR * ratios[slot]!) / (weights[slot]! + NEAR_PRIOR)
      const prior = priors[cohorts[slot]!]!
      ratios[slot] = (touched[slot]! + prior * near) / (expected[slot]! + prior)
    }
    this.#ratios.set(scope, ratios)
    return ratios
  }

  /** Probability that a restore of the scope touches each page. */
  probabilities(number: number): Float32Array {
    const scope = this.scopes[number]!
    const shares = this.#cohortShares(scope)
    return this.#ratiosIn(scope).map((ratio, slot) =>
      Math.min(0.999, ratio * shares[this.cohorts[slot]!]!),
    )
  }

  /** Makes all that was seen so far weigh less, as after a deploy in the guest. */
  discount(): void {
    for (const scope of this.scopes) scope.discount(SUDDEN)
    this.#ratios.clear()
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
    this.scopes[number] = new Scope(variant, this.pages.length)
    return number
  }

  /** Evidence for a child of the snapshot: pages that are at least as probable, as one cohort. */
  inherit(least: number): void {
    const probabilities = this.probabilities(0)
    this.sets.fill(0)
    for (const scope of this.scopes) {
      scope.touched.fill(0)
      scope.expected.fill(0)
    }
    let [sum, count] = [0, 0]
    probabilities.forEach((probability, slot) => {
      const stays = probability >= least
      // #forget() keeps what was touched.
      this.common.touched[slot] = stays ? this.common.unit : 0
      if (stays) sum += probability
      if (stays) count++
    })
    this.#forget()
    this.common.touched.fill(0)
    this.scopes.length = 1
    this.scopes[0] = new Scope(undefined, this.pages.length)
    this.cohorts.fill(0)
    this.cohortSizes.splice(0, this.cohortSizes.length, count)
    this.common.mixCohort(0, sum / Math.max(1, count), 1, 1)
  }

  /** Forgets pages that have not been touched for long, and keeps weights small. */
  settle(): void {
    this.#forget()
    const { unit } = this.common
    for (const scope of this.scopes) {
      scope.use /= unit
      scope.normalize()
    }
  }

  #forget(): void {
    const { touched, unit } = this.common
    const { pages, cohorts, places, sets } = this
    const ofScopes = this.scopes.flatMap((scope) => [scope.touched, scope.expected])
    const columns = [pages, cohorts, places, sets, ...ofScopes]
    let count = 0
    for (let slot = 0; slot < this.count; slot++) {
      if (sets[slot] !== 0 || touched[slot]! >= FORGOTTEN * unit) {
        for (const column of columns) column[count] = column[slot]!
        count++
      } else this.cohortSizes[cohorts[slot]!]!--
    }
    if (count === this.count) return
    for (const column of columns) column.fill(0, count)
    this.count = count
    this.#index = new PageIndex()
    for (let slot = 0; slot < count; slot++) this.#index.add(pages[slot]!, slot)
    this.#ratios.clear()
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
    this.#hiddenBy = longer(this.#hiddenBy, capacity)
    this.#heldOutBy = longer(this.#heldOutBy, capacity)
    for (const scope of this.scopes) scope.reserve(capacity)
  }
}
