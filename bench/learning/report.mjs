// @ts-check
// Ratios of the replayed scenarios, and their tables.
import { figure } from '../lib/figures.mjs'
import { simplePolicies } from './policies.mjs'
import { mean } from './replay.mjs'

/**
 * @typedef {import('./replay.mjs').Result} Result
 * @typedef {{ value: number, bound?: 'at least' | 'at most', target?: number, met?: boolean }} Ratio
 */

const simpleNames = Object.keys(simplePolicies)
/** Restores after a shift until the steady state begins, and over which a mean shows that it is back. */
const steadyAfter = 20
const healedOver = 5
const healedWithin = 1.2

/** @typedef {'stallMs' | 'laterMs'} Which  all restores, or those from the second on */

/** @param {Result} result @param {Which} [which] */
export const bestSimple = ({ outcomes }, which) =>
  Math.min(...simpleNames.map((name) => stall(outcomes, name, which)))

/** @param {Result['outcomes']} outcomes @param {string} name @param {Which} [which] */
const stall = (outcomes, name, which = 'stallMs') => outcomes[name]?.[which] ?? Number.NaN

/** Restores after the shift until the stall is back to 1.2 of the steady state. @param {Result} result */
export function healedAfter({ shiftAt, outcomes }) {
  const costs = outcomes.learned?.costs.slice(shiftAt) ?? []
  const steady = mean(costs.slice(steadyAfter))
  const isHealed = (/** @type {number} */ i) =>
    mean(costs.slice(i, i + healedOver)) <= healedWithin * steady
  return [...costs.keys()].find(isHealed) ?? costs.length
}

/**
 * Stall of a scenario's first restore, of which only a learner with a parent knows a page.
 * @param {string} name
 * @returns {(result: Result) => number}
 */
const firstStall =
  (name) =>
  ({ outcomes }) =>
    outcomes[name]?.costs[0] ?? Number.NaN

/** @param {readonly Result[]} results @param {(result: Result) => number} of */
const sumOf = (results, of) => results.reduce((sum, result) => sum + of(result), 0)

/** @param {readonly Result[]} results @param {string} name @param {Which} [which] */
const total = (results, name, which) =>
  sumOf(results, ({ outcomes }) => stall(outcomes, name, which))

/**
 * @param {readonly (readonly Result[])[]} seeds  the same scenarios with other random numbers
 * @returns {Record<string, Ratio>}
 */
export function ratiosOf(seeds) {
  const [first = []] = seeds
  const all = seeds.flat()
  /** Mean of a scenario over all seeds. @type {(name: string, of: (result: Result) => number) => number} */
  const ofScenario = (name, of) => mean(all.filter((result) => result.name === name).map(of))
  const names = first.map(({ name }) => name)
  const shifts = first.filter(({ shiftAt }) => shiftAt).map(({ name }) => name)
  const outliers = names.filter((name) => name.endsWith('-outliers'))
  const children = all.filter(({ hasParent }) => hasParent)
  const learnedTotal = (/** @type {Which} */ which) =>
    mean(seeds.map((results) => total(results, 'learned', which)))
  const bestTotal = (/** @type {Which} */ which) =>
    Math.min(...simpleNames.map((name) => total(first, name, which)))
  const worstOverSimple = (/** @type {Which} */ which) =>
    Math.max(
      ...names.map((name) =>
        ofScenario(
          name,
          (result) => stall(result.outcomes, 'learned', which) / bestSimple(result, which),
        ),
      ),
    )
  const wasteErrors = names.map((name) =>
    ofScenario(name, ({ learned }) => 100 * Math.abs(learned.estimate - learned.wasteShare)),
  )
  const ratios = {
    learnedOverBestSimple: atMost(worstOverSimple('stallMs'), 1.05),
    laterOverBestSimple: { value: worstOverSimple('laterMs') },
    bestSimpleOverLearnedTotal: atLeast(bestTotal('stallMs') / learnedTotal('stallMs'), 1.15),
    bestSimpleOverLearnedLater: { value: bestTotal('laterMs') / learnedTotal('laterMs') },
    // From the second restore on, since only the oracle knows a page of the first.
    learnedOverOracle: atMost(learnedTotal('laterMs') / total(first, 'oracle', 'laterMs'), 1.3),
    learnedOverFloor: { value: learnedTotal('laterMs') / total(first, 'floor', 'laterMs') },
    ...(shifts.length > 0 && {
      shiftHealedRestores: atMost(
        Math.max(...shifts.map((name) => ofScenario(name, healedAfter))),
        10,
      ),
    }),
    ...(children.length > 0 && {
      firstOfChildOverOnDemand: {
        value: sumOf(children, firstStall('learned')) / sumOf(children, firstStall('first run')),
      },
    }),
    wasteErrorPoints: atMost(mean(wasteErrors), 5),
    wasteErrorPointsWorst: { value: Math.max(...wasteErrors) },
    ...(outliers.length > 0 && {
      outlierTrace: {
        value: Math.max(
          ...outliers.map((name) => ofScenario(name, ({ learned }) => learned.trace)),
        ),
      },
    }),
    rewritesPerScenario: { value: mean(all.map(({ learned }) => learned.rewrites)) },
    heldOutPages: { value: mean(all.map(({ learned }) => learned.heldOut)) },
  }
  return ratios
}

/** @param {number} value @param {number} target @returns {Ratio} */
const atMost = (value, target) => ({ value, bound: 'at most', target, met: value <= target })
/** @param {number} value @param {number} target @returns {Ratio} */
const atLeast = (value, target) => ({ value, bound: 'at least', target, met: value >= target })

/**
 * @param {readonly (readonly Result[])[]} seeds
 * @returns {string[]}
 */
export function tableOf(seeds) {
  const [first = []] = seeds
  const columns = ['first run', 'last run', 'union', 'intersection', 'learned', 'floor', 'oracle']
  const row = (/** @type {string} */ name, /** @type {readonly string[]} */ cells) =>
    `${name.padEnd(22)}${cells.map((cell) => cell.padStart(13)).join('')}`
  const heads = [
    ...columns,
    'over simple',
    'missed',
    'wasted',
    'held out',
    'rewrites',
    'waste',
    'seen',
  ]
  const lines = [row('stall in ms', heads)]
  for (const { name } of first) {
    const same = seeds.flatMap((results) => results.filter((result) => result.name === name))
    const of = (/** @type {(result: Result) => number} */ get, digits = 2) =>
      figure(mean(same.map(get)), digits)
    lines.push(
      row(name, [
        ...columns.map((column) => of(({ outcomes }) => stall(outcomes, column))),
        of((result) => stall(result.outcomes, 'learned') / bestSimple(result)),
        of(({ outcomes }) => outcomes.learned?.missed ?? 0, 0),
        of(({ outcomes }) => outcomes.learned?.wasted ?? 0, 0),
        of(({ learned }) => learned.heldOut),
        of(({ learned }) => learned.rewrites, 1),
        `${of(({ learned }) => 100 * learned.wasteShare, 1)} %`,
        `${of(({ learned }) => 100 * learned.estimate, 1)} %`,
      ]),
    )
  }
  const totals = columns.map((column) =>
    figure(mean(seeds.map((results) => total(results, column))), 2),
  )
  return [...lines, row('all', totals)]
}
