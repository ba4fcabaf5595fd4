import { Evidence } from './evidence.js'
import { decodeEvidence, encodeEvidence } from './evidence-file.js'
import { HoldOutPlan } from './hold-out.js'
import {
  type Drift,
  emptyMeans,
  type LearnerDescription,
  type LearnerFacts,
  type LearnerOptions,
  type LearnerState,
  type MeanName,
  type Means,
  meanNames,
  type ProposedSet,
} from './learner-state.js'
import { isWorth, type Ledger, newLedger } from './ledger.js'
import type { Observation, Seen } from './observation.js'
import { HALF_LIFE, MEMORY } from './scope.js'
import { Surprise } from './surprise.js'

export { EvidenceError } from './bytes.js'
export type {
  Drift,
  LearnerDescription,
  LearnerFacts,
  LearnerOptions,
  ProposedSet,
  Quality,
} from './learner-state.js'
export type { Observation } from './observation.js'

/** Costs in use until restores have measured them. */
const FAULT_US = 50
const INSTALL_US = 1.2
/** A fault at least: a trap, a message, and the wake of the guest. */
const LEAST_FAULT_US = 1
/** An install at most, as a part of a fault. */
const MOST_INSTALL = 0.5
/** Faults after which a restore's mean wait of a fault counts in full. */
const SURE_FAULTS = 32
/** Restores between two rounds of forgetting. */
const ROUND = 64
/** Probability from which a child has a page of its parent, whatever it may cost in vain. */
const SURE = 0.8
/** Half-lives in restores of the quality of late, and of the past that it is compared with. */
const LATE = 5
const PAST = 40

/** Restores of a scope since its last revision. */
interface Batch {
  restores: number
  /** Slots of pages that faulted and were in no set. */
  residual: number[]
}

const qualities: readonly MeanName[] = ['residualCount', 'residualShare', 'stalledMs', 'wasteShare']

/** Learns from restores of one snapshot which pages to prefetch. Pure: no clock, no files. */
export class Learner {
  readonly facts: LearnerFacts
  readonly #evidence: Evidence
  readonly #ledgers: (Ledger | undefined)[] = []
  readonly #means: Means
  #drift: Drift | undefined
  readonly #surprise = new Surprise()
  readonly #memoryPrice: number
  readonly #holdOut: boolean

  private constructor(state: LearnerState, { memoryPrice = 0, holdOut = true }: LearnerOptions) {
    this.facts = state.facts
    this.#evidence = state.evidence
    this.#means = { ...state.means }
    this.#drift = state.drift
    state.ledgers.forEach((ledger, number) => {
      if (ledger) this.#ledgers[number] = { ...newLedger(), ...ledger }
    })
    this.#memoryPrice = memoryPrice
    this.#holdOut = holdOut
  }

  static fresh(facts: LearnerFacts, options: LearnerOptions = {}): Learner {
    const evidence = new Evidence(facts.memoryBytes / facts.pageSize)
    const ledgers = [newLedger()]
    return new Learner({ facts, evidence, ledgers, means: emptyMeans(), drift: undefined }, options)
  }

  /**
   * Begins with pages, by place, of the parent's snapshot: those that save more in the first restore,
   * which records otherwise, than they cost in the next ones if they are never needed.
   */
  static ofParent(parent: Learner, options: LearnerOptions = {}): Learner {
    const { facts, evidence, means } = decodeEvidence(parent.encode())
    const { faultUs, installUs, responseUs, spanUs } = means
    const kept = { ...emptyMeans(), faultUs, installUs, responseUs, spanUs }
    const state = { facts, evidence, ledgers: [newLedger()], means: kept, drift: undefined }
    const child = new Learner(state, options)
    const costs = child.#costs()
    const vainUs = 2 * MEMORY * costs.installUs
    evidence.inherit(Math.min(SURE, vainUs / (costs.faultUs + vainUs)))
    return child
  }

  /**
   * @throws EvidenceError for damaged bytes, and for those of another version.
   */
  static decode(bytes: Uint8Array, options: LearnerOptions = {}): Learner {
    return new Learner(decodeEvidence(bytes), options)
  }

  encode(): Uint8Array {
    return encodeEvidence({
      facts: this.facts,
      evidence: this.#evidence,
      ledgers: this.#ledgers,
      means: this.#means,
      drift: this.#drift,
    })
  }

  /** Learns from a batch of restores. Returns the changes that became visible with it. */
  observe(observations: readonly Observation[]): readonly Drift[] {
    const before = this.#evidence.common.restores
    if (Math.floor((before + observations.length) / ROUND) > Math.floor(before / ROUND)) {
      this.#evidence.settle()
      // Both go by slots, which have moved.
      for (const ledger of this.#ledgers) {
        if (ledger) [ledger.probabilities, ledger.plan] = [undefined, undefined]
      }
    }
    const drifts: Drift[] = []
    const batches = new Map<number, Batch>()
    for (const [i, seen] of this.#evidence.observe(observations).entries()) {
      this.#measure(observations[i]!, seen)
      const drift = this.#surprised(seen)
      if (drift) drifts.push(drift)
      const number = seen.scope
      // The scope of a variant that is new, or known again.
      if (number > 0 && this.#evidence.scopes[number]!.restores === 1) {
        this.#ledgers[number] = newLedger()
      }
      for (const scope of this.#hasOwnSet(number) ? [number] : new Set([0, number])) {
        const batch = batches.get(scope) ?? { restores: 0, residual: [] }
        batches.set(scope, batch)
        batch.restores++
        for (const slot of seen.residual) batch.residual.push(slot)
      }
    }
    for (const [number, batch] of batches) this.#revise(number, batch)
    return drifts
  }

  /** Compares the set that restores of a scope use with the best one, as now known. */
  #revise(number: number, { restores, residual }: Batch): void {
    const evidence = this.#evidence
    const ledger = this.#ledgers[number] ?? newLedger()
    this.#ledgers[number] = ledger
    const probabilities = evidence.probabilities(number)
    ledger.probabilities = probabilities
    ledger.plan = undefined
    const setBit = this.#setBit(number)
    const { faultUs, installUs } = this.#costs()
    let [gainUs, missingUs, wasteUs, expected, setPages] = [0, 0, 0, 0, 0]
    for (let slot = 0; slot < evidence.count; slot++) {
      const probability = probabilities[slot]!
      const worthUs = probability * faultUs - installUs
      if ((evidence.sets[slot]! & setBit) !== 0) {
        setPages++
        expected += probability
        if (worthUs < 0) gainUs -= worthUs
        if (worthUs < 0) wasteUs -= worthUs
      } else if (worthUs > 0) {
        missingUs += worthUs
        wasteUs -= installUs
      }
    }
    const missed = residual.filter(
      (slot) => (evidence.sets[slot]! & setBit) === 0 && probabilities[slot]! * faultUs > installUs,
    )
    ledger.gainUs = gainUs + missingUs
    ledger.missingUs = missingUs
    const regretUs = ledger.regretUs + restores * wasteUs + missed.length * faultUs
    ledger.regretUs = Math.max(0, regretUs)
    if (setPages > 0) {
      for (let i = 0; i < restores; i++) this.#note('wasteShare', 1 - expected / setPages)
    }
  }

  /**
   * Sets worth writing now: with them, the restores since the last one was written would have
   * gained more than `writeCostUs`, and those to come are expected to.
   */
  dueSets(writeCostUs: (pageCount: number) => number): readonly ProposedSet[] {
    const due: ProposedSet[] = []
    const isFirst = this.#ledgers[0]!.setPages === 0
    if (isFirst) {
      const first = this.#propose(0)
      return first.pages.length > 0 ? [first] : []
    }
    for (const number of [0, ...this.#variantNumbers()]) {
      const ledger = this.#ledgers[number]
      if (!ledger || ledger.gainUs <= 0) continue
      // A new common set is what variants without one of their own use from then on.
      const isCommonDue = due.some(({ variant }) => variant === undefined)
      if (isCommonDue && !this.#hasOwnSet(number)) continue
      if (!isWorth(ledger, writeCostUs(ledger.setPages))) continue
      const proposed = this.#propose(number)
      if (!isWorth(ledger, writeCostUs(proposed.pages.length))) continue
      due.push(proposed)
    }
    return due
  }

  #propose(number: number): ProposedSet {
    const { count, places, pages, scopes } = this.#evidence
    const probabilities = this.#probabilities(number)
    const { faultUs, installUs } = this.#costs()
    const slots: number[] = []
    for (let slot = 0; slot < count; slot++) {
      if (probabilities[slot]! * faultUs > installUs) slots.push(slot)
    }
    slots.sort((a, b) => places[a]! - places[b]! || a - b)
    const spanUs = this.#mean('spanUs') ?? 0
    return {
      variant: scopes[number]!.name,
      pages: Uint32Array.from(slots, (slot) => pages[slot]!),
      timesUs: Uint32Array.from(slots, (slot) => Math.round(places[slot]! * spanUs)),
      gainUs: this.#ledgers[number]?.gainUs ?? 0,
    }
  }

  /** Says that the set of a variant, or the common one, now has these pages. */
  written(variant: string | undefined, pages: Uint32Array): void {
    const number = this.#evidence.scopeOf(variant)
    if (variant !== undefined && number === 0) return
    const { sets, count } = this.#evidence
    for (let slot = 0; slot < count; slot++) sets[slot]! &= ~(1 << number)
    for (const page of pages) {
      const slot = this.#evidence.slotOf(page)
      if (slot >= 0) sets[slot]! |= 1 << number
    }
    for (const affected of number === 0 ? [0, ...this.#variantNumbers()] : [number]) {
      const ledger = this.#ledgers[affected] ?? newLedger()
      this.#ledgers[affected] = ledger
      if (affected === number) ledger.setPages = pages.length
      else if (ledger.setPages > 0) continue
      ledger.regretUs = 0
      ledger.gainUs = 0
      ledger.missingUs = 0
      ledger.plan = undefined
    }
  }

  /** Names of the variants with evidence, at most 16. */
  get variants(): readonly string[] {
    return this.#variantNumbers().map((number) => this.#evidence.scopes[number]!.name!)
  }

  /** Pages to leave out of the next restore's prefetch. */
  heldOut(variant: string | undefined, random: () => number): Uint32Array {
    const number = this.#evidence.scopeOf(variant)
    const setPages = this.#ledgers[this.#hasOwnSet(number) ? number : 0]!.setPages
    if (!this.#holdOut || setPages === 0) return new Uint32Array(0)
    const ledger = this.#ledgers[number] ?? newLedger()
    this.#ledgers[number] = ledger
    const { faultUs, installUs } = this.#costs()
    const stallUs = setPages * installUs + (this.#mean('residualCount') ?? 0) * faultUs
    const costs = { faultUs, installUs, stallUs, responseUs: this.#mean('responseUs') }
    const setBit = this.#setBit(number)
    const probabilities = this.#probabilities(number)
    ledger.plan ??= new HoldOutPlan(this.#evidence, number, probabilities, setBit, costs)
    const { pages } = this.#evidence
    return Uint32Array.from(ledger.plan.draw(random), (slot) => pages[slot]!)
  }

  describe(): LearnerDescription {
    const { common, count, scopes } = this.#evidence
    const { faultUs, installUs } = this.#costs()
    return {
      restores: common.restores,
      pages: count,
      variants: this.#variantNumbers().map((number) => ({
        name: scopes[number]!.name!,
        restores: scopes[number]!.restores,
        setPages: this.#ledgers[number]?.setPages ?? 0,
      })),
      setPages: this.#ledgers[0]!.setPages,
      quality: {
        residualShare: this.#mean('residualShare'),
        wasteShare: this.#mean('wasteShare'),
        stalledMs: this.#mean('stalledMs'),
        past: {
          residualShare: this.#mean('pastResidualShare'),
          wasteShare: this.#mean('pastWasteShare'),
          stalledMs: this.#mean('pastStalledMs'),
        },
      },
      costs: { faultUs, installUs: installUs - this.#memoryPrice },
      drift: this.#drift,
    }
  }

  #measure(observation: Observation, seen: Seen): void {
    const { faultUs, installUs, responseMs, stalledMs, prefetched, pages, timesUs } = observation
    if (faultUs !== undefined)
      this.#note('faultUs', faultUs, Math.min(1, pages.length / SURE_FAULTS))
    if (installUs !== undefined) this.#note('installUs', installUs)
    if (responseMs !== undefined) this.#note('responseUs', 1000 * responseMs)
    if (prefetched === undefined) {
      this.#note('spanUs', responseMs === undefined ? (timesUs.at(-1) ?? 0) : 1000 * responseMs)
      return
    }
    const missed = seen.residual.length
    const touched = missed + prefetched.length * (1 - (this.#mean('wasteShare') ?? 0))
    this.#note('residualCount', missed)
    if (touched > 0) this.#note('residualShare', missed / touched)
    if (stalledMs !== undefined) this.#note('stalledMs', stalledMs)
  }

  /** Whether the held-out pages of the last restores are a surprise, which is a drift. */
  #surprised({ scope, heldOut, heldOutTouched }: Seen): Drift | undefined {
    const probabilities = this.#ledgers[scope]?.probabilities
    if (!probabilities) return undefined
    const kind = this.#surprise.add(probabilities, heldOut, heldOutTouched)
    if (!kind) return undefined
    this.#evidence.discount()
    const { scopes, common } = this.#evidence
    this.#drift = { kind, variant: scopes[scope]!.name, restoreCount: common.restores }
    return this.#drift
  }

  #note(name: MeanName, value: number, weight = 1): void {
    const halfLife = name.startsWith('past') ? PAST : qualities.includes(name) ? LATE : HALF_LIFE
    const mean = this.#means[name]
    const decay = 2 ** (-weight / halfLife)
    this.#means[name] = {
      sum: mean.sum * decay + value * weight,
      weight: mean.weight * decay + weight,
    }
    const past = `past${name[0]!.toUpperCase()}${name.slice(1)}` as MeanName
    if (meanNames.includes(past)) this.#note(past, value, weight)
  }

  #mean(name: MeanName): number | undefined {
    const { sum, weight } = this.#means[name]
    return weight > 0 ? sum / weight : undefined
  }

  /**
   * Costs of a fault and of an install, with its memory. A fault is an install with more around it,
   * whatever a busy host has measured: a page that every restore touches is worth its install.
   */
  #costs(): { readonly faultUs: number; readonly installUs: number } {
    const faultUs = Math.max(LEAST_FAULT_US, this.#mean('faultUs') ?? FAULT_US)
    const installUs = Math.min(MOST_INSTALL * faultUs, this.#mean('installUs') ?? INSTALL_US)
    return { faultUs, installUs: installUs + this.#memoryPrice }
  }

  #hasOwnSet(number: number): boolean {
    return (this.#ledgers[number]?.setPages ?? 0) > 0
  }

  /** Bit of the set that restores of a scope use. */
  #setBit(number: number): number {
    return 1 << (this.#hasOwnSet(number) ? number : 0)
  }

  #probabilities(number: number): Float32Array {
    const ledger = this.#ledgers[number]
    const known = ledger?.probabilities
    if (known?.length === this.#evidence.count) return known
    const probabilities = this.#evidence.probabilities(number)
    if (ledger) ledger.probabilities = probabilities
    return probabilities
  }

  #variantNumbers(): number[] {
    return [...this.#evidence.scopes.keys()].slice(1)
  }
}
