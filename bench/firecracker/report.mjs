// @ts-check
// Computes figures from samples. Ratios are per round, since a machine with neighbours drifts.

import { median, summary } from '../../src/cli/measure/statistics.mjs'
import { ratioOf } from '../lib/figures.mjs'
import { pairedRatio } from '../replay/report.mjs'

/**
 * @typedef {import('./sample.mjs').Sample} Sample
 * @typedef {'cold' | 'warm'} Cache
 * @typedef {(sample: Sample) => number} Field
 * @typedef {import('../lib/figures.mjs').Ratio & { place?: string }} Ratio
 * @typedef {{ machine: Record<string, unknown>, scene: { memoryMib: number, pages: number, extents: number }, samples: readonly Sample[], limits: readonly { round: number, installMs: number }[], lazySnapshots: readonly ({ round: number } & import('./lazy-snapshot.mjs').SnapshotTimes)[], firstRestores: readonly ({ round: number } & import('./first-restores.mjs').FirstRestoreTimes)[] }} Measured
 */

/** Target of each ratio (defined in bench/README.md), if it has one. */
const targets = /** @type {const} */ ({
  onDemandOverExampleCold: ['at most', 0.55],
  onDemandOverExampleWarm: ['at most', 0.4],
  busyOnDemandOverExampleCold: ['at most', 0.8],
  busyOnDemandOverExampleWarm: ['at most', 0.8],
  recordOverOnDemand: ['at most', 1.03],
  reapOverOursCold: ['at least', 2.6],
  reapOverOursWarm: ['at least', 1.8],
  burstReapOverOursCold: ['at least', 2.4],
  burstReapOverOursWarm: ['at least', 1.5],
  burstP50ReapOverOursCold: ['at least', 3],
  burstP50ReapOverOursWarm: ['at least', 2],
  busyReapOverOursCold: ['at least', 2.5],
  busyReapOverOursWarm: ['at least', 1.4],
  burstOverLimitWarm: ['at most', 1.05],
  burstColdOverWarm: ['at most', 1.2],
  cpuOursOverReap: ['at most', 0.8],
  lazySnapshotOverResident: ['at most', 2],
  firstOverTenth: ['at most', 1.2],
  fileOverOursCold: undefined,
  fileOverOursWarm: undefined,
  burstFileOverOursCold: undefined,
  burstFileOverOursWarm: undefined,
  beforeOverOursCold: undefined,
  beforeOverOursWarm: undefined,
  burstBeforeOverOursCold: undefined,
  burstBeforeOverOursWarm: undefined,
  autoOverBest: ['at most', 1.05],
})

/** @type {Field} */
const untilAll = ({ allMs }) => allMs
/** @type {Field} */
const ofMiddleVm = ({ vmMs }) => median(vmMs) ?? Number.NaN
/** @type {Field} */
const cpuTime = ({ cpuMs }) => cpuMs

/** @param {{ cache: string, atOnce: number, busy: boolean }} place */
export const nameOf = ({ cache, atOnce, busy }) =>
  `${atOnce === 1 ? 'alone' : `${atOnce} at once`}${busy ? ', busy' : ''}, ${cache}`

/** @template T @param {readonly T[]} values */
const distinct = (values) => [...new Set(values)]

/** @param {readonly Sample[]} samples */
function placesOf(samples) {
  const kinds = distinct(samples.map(({ atOnce }) => atOnce)).flatMap((atOnce) =>
    [false, true].map((busy) => ({ atOnce, busy })),
  )
  const places = kinds.flatMap((kind) =>
    /** @type {const} */ (['cold', 'warm']).map((cache) => ({ ...kind, cache })),
  )
  return places.flatMap((place) => {
    const own = samples.filter((sample) => nameOf(sample) === nameOf(place))
    return own.length > 0 ? [{ ...place, samples: own }] : []
  })
}

/** A figure of one arm, by round. @param {readonly Sample[]} samples @param {string} arm */
const byRound = (samples, arm, field = untilAll) =>
  new Map(
    samples.filter((sample) => sample.arm === arm).map((sample) => [sample.round, field(sample)]),
  )

/** `auto` over the other arm with the lowest median; the place with the highest ratio. */
function autoOverBest(/** @type {ReturnType<typeof placesOf>} */ places) {
  const idle = places.filter(({ busy }) => !busy)
  const found = idle.flatMap((place) => {
    const { samples } = place
    // `before` and `held` are not candidates of `auto`.
    const others = distinct(samples.map(({ arm }) => arm)).filter(
      (arm) => !['auto', 'before', 'held'].includes(arm),
    )
    const time = (/** @type {string} */ arm) =>
      median([...byRound(samples, arm).values()]) ?? Infinity
    const best = others.sort((a, b) => time(a) - time(b))[0]
    if (best === undefined) return []
    const ratio = ratioOf(
      pairedRatio(byRound(samples, 'auto'), byRound(samples, best)),
      targets.autoOverBest,
    )
    return ratio ? [{ ...ratio, place: `${nameOf(place)}: ${best}` }] : []
  })
  return found.sort((a, b) => b.value - a.value)[0]
}

/**
 * The sum of two figures of each round that has both.
 *
 * @param {ReadonlyMap<number, number>} one
 * @param {ReadonlyMap<number, number>} other
 */
const summed = (one, other) =>
  new Map(
    [...one].flatMap(([round, value]) => {
      const more = other.get(round)
      return more === undefined ? [] : [/** @type {const} */ ([round, value + more])]
    }),
  )

/** @param {Omit<Measured, 'machine' | 'scene'>} measured */
function ratiosOf({ samples, limits, lazySnapshots, firstRestores }) {
  const places = placesOf(samples)
  const most = Math.max(...places.map(({ atOnce }) => atOnce))
  const alone = { atOnce: 1, busy: false }
  const besideLoops = { atOnce: 1, busy: true }
  const burst = { atOnce: most > 1 ? most : Number.NaN, busy: false }
  const times = (
    /** @type {string} */ arm,
    /** @type {Cache} */ cache,
    kind = alone,
    field = untilAll,
  ) => {
    const found = places.find((place) => nameOf(place) === nameOf({ ...kind, cache }))
    return byRound(found?.samples ?? [], arm, field)
  }
  const over = (
    /** @type {string} */ arm,
    /** @type {string} */ under,
    /** @type {Cache} */ cache,
    kind = alone,
  ) => pairedRatio(times(arm, cache, kind), times(under, cache, kind))
  const overOurs = (
    /** @type {string} */ arm,
    /** @type {Cache} */ cache,
    kind = alone,
    field = untilAll,
  ) => pairedRatio(times(arm, cache, kind, field), times('working-set', cache, kind, field))
  const cpu = (/** @type {string} */ arm) =>
    summed(times(arm, 'cold', burst, cpuTime), times(arm, 'warm', burst, cpuTime))
  const installs = new Map(limits.map(({ round, installMs }) => [round, installMs * most]))
  /** @type {Record<Exclude<keyof typeof targets, 'autoOverBest'>, number[]>} */
  const values = {
    onDemandOverExampleCold: over('on-demand', 'example', 'cold'),
    onDemandOverExampleWarm: over('on-demand', 'example', 'warm'),
    busyOnDemandOverExampleCold: over('on-demand', 'example', 'cold', besideLoops),
    busyOnDemandOverExampleWarm: over('on-demand', 'example', 'warm', besideLoops),
    recordOverOnDemand: over('record', 'on-demand', 'warm'),
    reapOverOursCold: overOurs('reap', 'cold'),
    reapOverOursWarm: overOurs('reap', 'warm'),
    burstReapOverOursCold: overOurs('reap', 'cold', burst),
    burstReapOverOursWarm: overOurs('reap', 'warm', burst),
    burstP50ReapOverOursCold: overOurs('reap', 'cold', burst, ofMiddleVm),
    burstP50ReapOverOursWarm: overOurs('reap', 'warm', burst, ofMiddleVm),
    busyReapOverOursCold: overOurs('reap', 'cold', besideLoops),
    busyReapOverOursWarm: overOurs('reap', 'warm', besideLoops),
    burstOverLimitWarm: pairedRatio(
      times('working-set', 'warm', burst),
      summed(times('file', 'warm'), installs),
    ),
    burstColdOverWarm: pairedRatio(
      times('working-set', 'cold', burst),
      times('working-set', 'warm', burst),
    ),
    cpuOursOverReap: pairedRatio(cpu('working-set'), cpu('reap')),
    lazySnapshotOverResident: lazySnapshots.map(({ lazyMs, residentMs }) => lazyMs / residentMs),
    firstOverTenth: firstRestores.map(({ firstMs, tenthMs }) => firstMs / tenthMs),
    fileOverOursCold: overOurs('file', 'cold'),
    fileOverOursWarm: overOurs('file', 'warm'),
    burstFileOverOursCold: overOurs('file', 'cold', burst),
    burstFileOverOursWarm: overOurs('file', 'warm', burst),
    beforeOverOursCold: overOurs('before', 'cold'),
    beforeOverOursWarm: overOurs('before', 'warm'),
    burstBeforeOverOursCold: overOurs('before', 'cold', burst),
    burstBeforeOverOursWarm: overOurs('before', 'warm', burst),
  }
  /** @type {[string, Ratio][]} */
  const ratios = Object.entries(values).flatMap(([name, list]) => {
    const ratio = ratioOf(list, targets[/** @type {keyof typeof targets} */ (name)])
    return ratio ? [[name, ratio]] : []
  })
  const auto = autoOverBest(places)
  return Object.fromEntries(auto ? [...ratios, ['autoOverBest', auto]] : ratios)
}

/** Figures of one arm in one place. @param {readonly Sample[]} samples */
function summarize(samples) {
  const counts = samples.flatMap((sample) => sample.counts)
  const choices = /** @type {Record<string, number>} */ ({})
  for (const { choice } of counts) {
    if (choice !== undefined) choices[choice] = (choices[choice] ?? 0) + 1
  }
  return {
    allMs: summary(samples.map(untilAll)),
    vmMs: summary(samples.flatMap(({ vmMs }) => vmMs)),
    cpuMs: summary(samples.map(cpuTime)),
    faults: summary(counts.map(({ faults }) => faults)),
    lateFaults: summary(counts.map(({ lateFaults }) => lateFaults)),
    residualFaults: summary(counts.map(({ residualFaults }) => residualFaults)),
    choices,
  }
}

/**
 * Samples of an interrupted run are reported too: each figure has its sample count.
 *
 * @param {Measured} measured
 */
export function makeReport({ machine, scene, samples, limits, lazySnapshots, firstRestores }) {
  const results = Object.fromEntries(
    placesOf(samples).map((place) => [
      nameOf(place),
      Object.fromEntries(
        distinct(place.samples.map(({ arm }) => arm))
          .sort()
          .map((arm) => [arm, summarize(place.samples.filter((sample) => sample.arm === arm))]),
      ),
    ]),
  )
  return {
    machine,
    ratios: ratiosOf({ samples, limits, lazySnapshots, firstRestores }),
    results,
    installLimitMs: summary(limits.map(({ installMs }) => installMs)),
    lazySnapshotMs: summary(lazySnapshots.map(({ lazyMs }) => lazyMs)),
    residentSnapshotMs: summary(lazySnapshots.map(({ residentMs }) => residentMs)),
    firstRestoreMs: summary(firstRestores.map(({ firstMs }) => firstMs)),
    tenthRestoreMs: summary(firstRestores.map(({ tenthMs }) => tenthMs)),
    answers: samples.reduce((sum, { atOnce }) => sum + atOnce, 0),
    wrong: samples.reduce((sum, { wrong }) => sum + wrong, 0),
    scene,
    samples,
    limits,
    lazySnapshots,
    firstRestores,
  }
}

/** @typedef {ReturnType<typeof makeReport>} Report */

/** Maximum share of a set's recorded pages that the guest may fault on in the median. */
const RESIDUAL_SHARE = 0.01

/** Violated invariants that hold on any machine; empty if there are none. @param {Report} report */
export function checks({ results, wrong, scene }) {
  const failed = wrong > 0 ? [`${wrong} wrong answers`] : []
  for (const [place, arms] of Object.entries(results)) {
    const count = arms['working-set']?.residualFaults?.median ?? 0
    if (count <= scene.pages * RESIDUAL_SHARE) continue
    failed.push(`${place}: ${count} residual faults of ${scene.pages} pages`)
  }
  return failed
}
