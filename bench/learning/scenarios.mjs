// @ts-check
// The scenarios: which function, and what each of its runs is asked.
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { outliers, shifts, usual } from './inputs.mjs'

/** @typedef {import('./inputs.mjs').Drawn} Drawn */
/** @typedef {import('./inputs.mjs').Distribution} Distribution */
/**
 * @typedef {object} Plan
 * @property {string} name
 * @property {string} function
 * @property {number} seed
 * @property {Drawn[]} requests   one for each run
 * @property {number} [shiftAt]   the first run of the second distribution
 * @property {Child} [child]      what the snapshot comes from, unless it is the function's
 * @property {{ of: string }} [remade]  the snapshot is another boot of the function in the scenario `of`
 */
/**
 * A snapshot of a VM that was restored from the one of the scenario `of`.
 * @typedef {object} Child
 * @property {string} of
 * @property {Drawn[]} before  what the VM was asked in between
 */

const outlierBlocks = 3
const outlierEvery = 20
const childRuns = 16
const remadeFunctions = ['json_serdes', 'nodejs']
/** Invocations before the snapshot of each generation. */
const children = { json_serdes: [6, 6], nodejs: [20, 100, 100] }

/**
 * @template T
 * @param {number} length
 * @param {(index: number) => T} each
 */
const list = (length, each) => Array.from({ length }, (_, index) => each(index))

/**
 * Each scenario draws with a seed of its own, so that it does not depend on the others.
 * @param {{ runs: number, seed: number }} options  `runs`: of a function's usual scenario
 * @returns {Plan[]}
 */
export function makePlans({ runs, seed: first }) {
  /** @type {Plan[]} */
  const plans = []
  /** @type {(name: string, of: string, draw: (random: () => number) => Omit<Plan, 'name' | 'function' | 'seed'>) => void} */
  const add = (name, of, draw) => {
    const seed = first + plans.length
    plans.push({ name, function: of, seed, ...draw(randomNumbers(seed)) })
  }
  for (const [name, draw] of Object.entries(usual)) {
    add(name, name, (random) => ({ requests: list(runs, () => draw(random)) }))
  }
  for (const [name, [before, after]] of Object.entries(shifts)) {
    add(`${name}-shift`, name, (random) => ({
      shiftAt: runs,
      requests: list(2 * runs, (index) => (index < runs ? before : after)(random)),
    }))
  }
  for (const [name, drawOutlier] of Object.entries(outliers)) {
    add(`${name}-outliers`, name, (random) => {
      const requests = list(outlierBlocks * outlierEvery, () => usualOf(name)(random))
      for (let block = 0; block < outlierBlocks; block++) {
        const at = Math.floor((block + random()) * outlierEvery)
        requests[at] = drawOutlier(random, block)
      }
      return { requests }
    })
  }
  for (const [name, generations] of Object.entries(children)) {
    for (const [index, invocations] of generations.entries()) {
      const nameOf = (/** @type {number} */ generation) =>
        generation === 0 ? name : `${name}-child-${generation}`
      add(nameOf(index + 1), name, (random) => ({
        child: { of: nameOf(index), before: list(invocations, () => usualOf(name)(random)) },
        requests: list(childRuns, () => usualOf(name)(random)),
      }))
    }
  }
  for (const name of remadeFunctions) {
    add(`${name}-remade`, name, (random) => ({
      remade: { of: name },
      requests: list(childRuns, () => usualOf(name)(random)),
    }))
  }
  return plans
}

const usualOf = (/** @type {string} */ name) => /** @type {Distribution} */ (usual[name])
