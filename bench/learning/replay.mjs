// @ts-check
// Replays recorded runs under each policy, and counts what a restore would have cost.
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { floor, learned, oracle, simplePolicies } from './policies.mjs'
import { readScenario } from './traces.mjs'

/**
 * @typedef {import('./policies.mjs').Policy} Policy
 * @typedef {import('./traces.mjs').Run} Run
 * @typedef {import('../../src/store/learner/learner.js').Learner} Learner
 * @typedef {typeof import('../../src/store/learner/learner.js').Learner} LearnerClass
 */
/**
 * @typedef {object} Costs
 * @property {number} faultUs      stall of a fault
 * @property {number} installUs    stall of an installed page
 * @property {number} memoryPrice  what a page costs the learner beyond its install
 * @property {number} writeUs      what a set costs that is written in the background
 */
/**
 * Means of a scenario's restores: `stallMs` of all, the others from the second on; `costs` has all of them.
 * @typedef {{ stallMs: number, laterMs: number, missed: number, wasted: number, costs: number[] }} Outcome
 */
/**
 * @typedef {object} Learned  what only the learner has
 * @property {number} heldOut     pages a restore
 * @property {number} rewrites    sets that were written
 * @property {number} wasteShare  of the set, in the second half of the runs
 * @property {number} estimate    the same as the learner sees it
 * @property {number} trace       share of an outlier's own pages in the set one half-life later
 */
/** @typedef {{ name: string, shiftAt?: number, hasParent: boolean, outcomes: Record<string, Outcome>, learned: Learned }} Result */

const halfLife = 20

/**
 * @param {readonly Run[]} runs
 * @param {Policy} policy
 * @param {Costs} costs
 * @returns {Outcome}
 */
function replay(runs, policy, { faultUs, installUs }) {
  let [missed, wasted] = [0, 0]
  const costs = runs.map((run, i) => {
    const choice = policy.choose(run)
    const installed = [...(choice?.set ?? [])].filter((page) => !choice?.heldOut?.has(page))
    const present = new Set(installed)
    const hits = run.pages.filter((page) => present.has(page)).length
    policy.observe(run, choice)
    if (i > 0) {
      missed += run.pages.length - hits
      wasted += installed.length - hits
    }
    return (run.pages.length - hits) * faultUs + installed.length * installUs
  })
  const later = runs.length - 1
  const [stallMs, laterMs] = [mean(costs) / 1000, mean(costs.slice(1)) / 1000]
  return { stallMs, laterMs, missed: missed / later, wasted: wasted / later, costs }
}

/** Replays scenarios, the parent of each child, and what was made again, before it. */
export class Replay {
  /** @type {Map<string, Promise<{ learner: Learner, outcome: Outcome, learned: Learned }>>} */
  #learned = new Map()
  #Learner
  #costs
  #seed

  /** @param {LearnerClass} Learner @param {Costs} costs @param {number} seed */
  constructor(Learner, costs, seed) {
    this.#Learner = Learner
    this.#costs = costs
    this.#seed = seed
  }

  /**
   * @param {string} name
   * @returns {Promise<Result>}
   */
  async scenario(name) {
    const { runs, shiftAt, child, remade } = await readScenario(name)
    const policies = { ...simplePolicies, floor, oracle }
    const outcomes = Object.fromEntries(
      Object.entries(policies).map(([key, make]) => [key, replay(runs, make(), this.#costs)]),
    )
    const { outcome, learned } = await this.learned(name)
    return {
      name,
      ...(shiftAt && { shiftAt }),
      hasParent: (child ?? remade) !== undefined,
      outcomes: { ...outcomes, learned: outcome },
      learned,
    }
  }

  /**
   * @param {string} name
   * @returns {Promise<{ learner: Learner, outcome: Outcome, learned: Learned }>}
   */
  learned(name) {
    const known = this.#learned.get(name) ?? this.#learn(name)
    this.#learned.set(name, known)
    return known
  }

  /** @param {string} name */
  async #learn(name) {
    const { runs, child, remade, memoryBytes, pageSize } = await readScenario(name)
    const { memoryPrice, ...costs } = this.#costs
    // As in the store, where a snapshot that was made again takes the place of the old one.
    const parentName = (child ?? remade)?.of
    const parent = parentName && (await this.learned(parentName)).learner
    const learner = parent
      ? this.#Learner.ofParent(parent, { memoryPrice })
      : this.#Learner.fresh({ memoryBytes, pageSize }, { memoryPrice })
    const policy = learned(learner, { ...costs, random: randomNumbers(this.#seed) })
    const witness = new Witness(policy, learner, runs)
    const outcome = replay(runs, witness, this.#costs)
    return { learner, outcome, learned: witness.findings() }
  }
}

/**
 * The learner's policy, with an eye on what it cannot know.
 * @implements {Policy}
 */
class Witness {
  #policy
  #learner
  #runs
  #run = -1
  /** @type {{ estimate: number, share: number, heldOut: number }[]} */
  #restores = []
  /** @type {number[]} */
  #traces = []

  /** @param {ReturnType<typeof learned>} policy @param {Learner} learner @param {readonly Run[]} runs */
  constructor(policy, learner, runs) {
    this.#policy = policy
    this.#learner = learner
    this.#runs = runs
  }

  /** @param {Run} run */
  choose(run) {
    this.#run++
    const choice = this.#policy.choose(run)
    if (!choice) return choice
    const touched = new Set(run.pages)
    const unused = [...choice.set].filter((page) => !touched.has(page)).length
    const estimate = this.#learner.describe().quality.wasteShare
    if (estimate !== undefined) {
      const share = unused / choice.set.size
      this.#restores.push({ estimate, share, heldOut: choice.heldOut?.size ?? 0 })
    }
    const outlier = this.#runs[this.#run - halfLife - 1]
    if (outlier?.outlier) {
      const before = this.#runs.slice(0, this.#run).filter((other) => other !== outlier)
      const usual = new Set(before.flatMap(({ pages }) => [...pages]))
      const own = [...outlier.pages].filter((page) => !usual.has(page))
      if (own.length > 0) {
        this.#traces.push(own.filter((page) => choice.set.has(page)).length / own.length)
      }
    }
    return choice
  }

  /** @param {Run} run @param {import('./policies.mjs').Choice} choice */
  observe(run, choice) {
    this.#policy.observe(run, choice)
  }

  /** @returns {Learned} */
  findings() {
    const late = this.#restores.slice(this.#restores.length / 2)
    return {
      heldOut: mean(this.#restores.map(({ heldOut }) => heldOut)),
      rewrites: this.#policy.rewrites,
      wasteShare: mean(late.map(({ share }) => share)),
      estimate: mean(late.map(({ estimate }) => estimate)),
      trace: mean(this.#traces),
    }
  }
}

/** @param {readonly number[]} values */
export const mean = (values) =>
  values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
