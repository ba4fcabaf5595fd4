// @ts-check
// Computes figures from samples. Ratios are per round, since a machine with neighbours drifts.

import { median, summary } from '../../src/cli/measure/statistics.mjs'
import { ratioOf } from '../lib/figures.mjs'
import {
  burstBy,
  caches,
  cells,
  choosable,
  huge,
  middle,
  nameOf,
  sharedBy,
  small,
} from './cells.mjs'

/**
 * @typedef {{ cell: string, round: number } & Record<string, any>} Sample one of a cell
 * @typedef {{ scene: string, round: number, install: Record<string, number>, read: Record<string, number> }} Limit
 * @typedef {{ round: number, bareUs: number, oursUs: number, bareP99Us: number, oursP99Us: number }} FaultCost
 * @typedef {{ round: number, cache: 'cold' | 'warm', verifyMs: number, readsMs: number }} ComparisonCost
 * @typedef {{ round: number, aloneP50Us: number, aloneP99Us: number, besideP50Us: number, besideP99Us: number, comparisons: number, wentOn: boolean }} FaultsBeside
 * @typedef {{ round: number, aloneP99Us: number, besideP99Us: number, prefetchMs: number }} FaultsBesidePrefetch one of `victims`
 *
 * @typedef {import('../lib/figures.mjs').Ratio} Ratio
 *
 * @typedef {object} Measured
 * @property {Record<string, unknown>} machine
 * @property {readonly import('./scene.mjs').Scene[]} scenes
 * @property {readonly Sample[]} samples
 * @property {readonly Limit[]} limits
 * @property {readonly FaultCost[]} faults
 * @property {readonly ComparisonCost[]} comparisons
 * @property {readonly FaultsBeside[]} besides
 * @property {readonly FaultsBesidePrefetch[]} victims
 */

/** Target of each ratio (defined in bench/README.md), if it has one. */
const targets = /** @type {const} */ ({
  installEfficiency: ['at least', 0.9],
  coldEfficiency: ['at least', 0.8],
  smallSetOverLimitWarm: ['at most', 2.2],
  smallSetOverLimitCold: ['at most', 2.4],
  reapOverOursCold: ['at least', 1.8],
  reapOverOursWarm: ['at least', 2.5],
  reapCachedOverOursWarm: undefined,
  onDemandOverOursCold: ['at least', 15],
  onDemandOverOursWarm: ['at least', 7],
  demandFaultOverBare: ['at most', 0.8],
  recordOverOnDemand: ['at most', 1.03],
  busyLoopOverIdle: ['at most', 1.03],
  concurrent64: ['at least', 0.8],
  sessionBytes: ['at most', 200 * 1024],
  growth: ['at most', 1.15],
  autoOverKernelFileWarm: ['at most', 1.03],
  autoOverBestCold: ['at most', 1.1],
  sharedRestoresRss: undefined,
  burstKernelFileOverOursCold: undefined,
  burstKernelFileOverOursWarm: undefined,
  burstPageCacheOverOursCold: undefined,
  burstPageCacheOverOursWarm: undefined,
  unprovenOverProvenCold: ['at most', 2.5],
  unprovenOverProvenWarm: ['at most', 1.1],
  compareOverReadsCold: ['at most', 1.2],
  compareOverReadsWarm: ['at most', 1.2],
  faultP99DuringCompare: ['at most', 1.1],
  victimP99: ['at most', 1.5],
})

/** Baselines of `auto` in every cell: the best arm, and the kernel's when warm. */
export const autoBounds = /** @type {const} */ ({ best: 1.1, kernelFileWarm: 1.03 })

/** The variant with the lowest median: `{ '1': …, '2': … }` in each round. */
function bestWay(/** @type {readonly Record<string, number>[]} */ rounds) {
  const ways = Object.keys(rounds[0] ?? {})
  const time = (/** @type {string} */ way) => median(rounds.map((times) => times[way])) ?? Infinity
  return ways.sort((a, b) => time(a) - time(b))[0] ?? ''
}

/** @param {readonly Limit[]} limits */
function bestLimits(limits) {
  const best = /** @type {Record<string, { install: string, read: string }>} */ ({})
  for (const scene of new Set(limits.map((limit) => limit.scene))) {
    const rounds = limits.filter((limit) => limit.scene === scene)
    best[scene] = {
      install: bestWay(rounds.map(({ install }) => install)),
      read: bestWay(rounds.map(({ read }) => read)),
    }
  }
  return best
}

/** Ratios of the rounds that have both. */
export function pairedRatio(
  /** @type {ReadonlyMap<number, number>} */ over,
  /** @type {ReadonlyMap<number, number>} */ under,
) {
  return [...over].flatMap(([round, value]) => {
    const other = under.get(round)
    return other === undefined ? [] : [value / other]
  })
}

/** @param {readonly Sample[]} samples @param {object} cell */
function valuesIn(samples, cell, field = 'responseMs') {
  const name = nameOf(cell)
  return new Map(
    samples
      .filter((sample) => sample.cell === name)
      .map((sample) => [sample.round, /** @type {number} */ (sample[field])]),
  )
}

/**
 * `auto` in each place where it was measured, over the arm with the lowest median there, and over
 * the kernel's.
 *
 * @param {readonly Sample[]} samples
 */
function choicesOf(samples) {
  return cells
    .filter(({ arm }) => arm === 'auto')
    .flatMap(({ scene, guest, cache }) => {
      const place = { scene, guest, cache }
      const auto = valuesIn(samples, { ...place, arm: 'auto' })
      const timesOf = (/** @type {string} */ arm) => valuesIn(samples, { ...place, arm })
      const medians = choosable.flatMap((arm) => {
        const ms = median([...timesOf(arm).values()])
        return ms === undefined ? [] : [{ arm, ms }]
      })
      const best = medians.sort((a, b) => a.ms - b.ms)[0]?.arm
      if (auto.size === 0 || best === undefined) return []
      const over = (/** @type {string} */ arm) => summary(pairedRatio(auto, timesOf(arm)))
      const chosen = [...valuesIn(samples, { ...place, arm: 'auto' }, 'choseUffd').values()]
      const uffd = chosen.filter((value) => value === 1).length
      return [
        {
          ...place,
          best,
          overBest: over(best),
          overKernelFile: over('kernel-file'),
          uffd,
          pageCache: chosen.length - uffd,
          decidedMs: summary([
            ...valuesIn(samples, { ...place, arm: 'auto' }, 'decidedMs').values(),
          ]),
        },
      ]
    })
}

/** @param {Measured} measured */
function ratiosOf({ scenes, samples, limits, faults, comparisons, besides, victims }) {
  const best = bestLimits(limits)
  const valuesOf = (/** @type {object} */ cell, field = 'responseMs') =>
    valuesIn(samples, cell, field)
  const limitOf = (
    /** @type {string} */ scene,
    /** @type {(limit: { installMs: number, readMs: number }) => number} */ pick,
  ) =>
    new Map(
      limits
        .filter((limit) => limit.scene === scene)
        .map(({ round, install, read }) => {
          const ways = best[scene] ?? { install: '', read: '' }
          const [installMs, readMs] = [install[ways.install] ?? NaN, read[ways.read] ?? NaN]
          return [round, pick({ installMs, readMs })]
        }),
    )
  const pagesOf = (/** @type {string} */ name) =>
    scenes.find((scene) => scene.name === name)?.pages ?? NaN
  const paused = (/** @type {string} */ scene, cache = 'warm') =>
    valuesOf({ scene, arm: 'working-set', paused: true, cache }, 'sinceConnectMs')
  const arm = (/** @type {string} */ name, cache = 'warm') =>
    valuesOf({ scene: middle, arm: name, cache })
  const bestOf = (/** @type {string} */ cache) => {
    const times = choosable.map((name) => arm(name, cache))
    const ms = (/** @type {Map<number, number>} */ each) => median([...each.values()]) ?? Infinity
    return times.sort((a, b) => ms(a) - ms(b))[0] ?? new Map()
  }
  const overOurs = (/** @type {string} */ name, cache = 'warm') =>
    pairedRatio(arm(name, cache), arm('working-set', cache))
  const burstOverOurs = (
    /** @type {'kernel-file' | 'page-cache'} */ name,
    /** @type {'cold' | 'warm'} */ cache,
  ) => pairedRatio(valuesOf(burstBy(name, cache)), valuesOf(burstBy('working-set', cache)))
  const crowd = { scene: small, arm: 'working-set', concurrent: 64, paused: true, cache: 'warm' }
  const faultCost = (/** @type {'bareUs' | 'oursUs'} */ field) =>
    new Map(faults.map((cost) => [cost.round, cost[field]]))
  const compareOverReads = (/** @type {'cold' | 'warm'} */ cache) =>
    comparisons
      .filter((cost) => cost.cache === cache)
      .map(({ verifyMs, readsMs }) => verifyMs / readsMs)
  const installed = limitOf(middle, ({ installMs }) => installMs)
  const slowest = limitOf(middle, ({ installMs, readMs }) => Math.max(installMs, readMs))
  const smallLimit = limitOf(small, ({ installMs, readMs }) => Math.max(installMs, readMs))
  const smallSet = (/** @type {'cold' | 'warm'} */ cache) =>
    pairedRatio(valuesOf({ scene: small, arm: 'working-set', cache }), smallLimit)
  const pagesPerMs = limitOf(small, ({ installMs }) => pagesOf(small) / installMs)
  return {
    installEfficiency: pairedRatio(installed, paused(middle)),
    coldEfficiency: pairedRatio(slowest, paused(middle, 'cold')),
    smallSetOverLimitWarm: smallSet('warm'),
    smallSetOverLimitCold: smallSet('cold'),
    reapOverOursCold: overOurs('reap', 'cold'),
    reapOverOursWarm: overOurs('reap'),
    reapCachedOverOursWarm: overOurs('reap-cached'),
    onDemandOverOursCold: overOurs('on-demand', 'cold'),
    onDemandOverOursWarm: overOurs('on-demand'),
    demandFaultOverBare: pairedRatio(faultCost('oursUs'), faultCost('bareUs')),
    recordOverOnDemand: pairedRatio(arm('record'), arm('on-demand')),
    busyLoopOverIdle: pairedRatio(
      valuesOf({ scene: middle, arm: 'working-set', busy: true, cache: 'warm' }),
      arm('working-set'),
    ),
    concurrent64: pairedRatio(valuesOf(crowd, 'pagesPerMs'), pagesPerMs),
    sessionBytes: [...valuesOf(crowd, 'sessionBytes').values()],
    growth: pairedRatio(paused(huge), paused(small)).map(
      (ratio) => (ratio * pagesOf(small)) / pagesOf(huge),
    ),
    autoOverKernelFileWarm: pairedRatio(arm('auto'), arm('kernel-file')),
    autoOverBestCold: pairedRatio(arm('auto', 'cold'), bestOf('cold')),
    sharedRestoresRss: pairedRatio(
      valuesOf(sharedBy('page-cache'), 'memoryBytes'),
      valuesOf(sharedBy('working-set'), 'memoryBytes'),
    ),
    burstKernelFileOverOursCold: burstOverOurs('kernel-file', 'cold'),
    burstKernelFileOverOursWarm: burstOverOurs('kernel-file', 'warm'),
    burstPageCacheOverOursCold: burstOverOurs('page-cache', 'cold'),
    burstPageCacheOverOursWarm: burstOverOurs('page-cache', 'warm'),
    unprovenOverProvenCold: overOurs('unproven', 'cold'),
    unprovenOverProvenWarm: overOurs('unproven'),
    compareOverReadsCold: compareOverReads('cold'),
    compareOverReadsWarm: compareOverReads('warm'),
    faultP99DuringCompare: besides
      .filter(({ wentOn }) => wentOn)
      .map(({ besideP99Us, aloneP99Us }) => besideP99Us / aloneP99Us),
    victimP99: victims.map(({ besideP99Us, aloneP99Us }) => besideP99Us / aloneP99Us),
  }
}

const FIELDS = [
  'responseMs',
  'serveMs',
  'sinceConnectMs',
  'fetchMs',
  'installMs',
  'faults',
  'lateFaults',
  'residualFaults',
  'allMs',
  'pagesPerMs',
  'sessionBytes',
  'memoryBytes',
  'prepareMs',
  'decidedMs',
  'completedMs',
]

/**
 * Samples of an interrupted run are reported too: each figure has its sample count.
 * @param {Measured} measured
 */
export function makeReport(measured) {
  const { machine, scenes, samples, limits, faults, comparisons, besides, victims } = measured
  const results = Object.fromEntries(
    cells.flatMap(({ name }) => {
      const own = samples.filter((sample) => sample.cell === name)
      if (own.length === 0) return []
      const figures = FIELDS.flatMap((field) => {
        const figure = summary(own.map((sample) => sample[field]))
        return figure ? [[field, figure]] : []
      })
      return [[name, Object.fromEntries(figures)]]
    }),
  )
  const best = bestLimits(limits)
  const limitFigures = Object.fromEntries(
    Object.entries(best).map(([scene, ways]) => {
      const own = limits.filter((limit) => limit.scene === scene)
      const figure = (/** @type {'install' | 'read'} */ kind) => ({
        way: ways[kind],
        ...summary(own.map((limit) => limit[kind][ways[kind]])),
      })
      return [scene, { installMs: figure('install'), readMs: figure('read') }]
    }),
  )
  const faultFigures = Object.fromEntries(
    /** @type {const} */ (['bareUs', 'oursUs', 'bareP99Us', 'oursP99Us']).map((field) => [
      field,
      summary(faults.map((cost) => cost[field])),
    ]),
  )
  const comparisonFigures = Object.fromEntries(
    caches.map((state) => {
      const own = comparisons.filter(({ cache }) => cache === state)
      const figure = (/** @type {'verifyMs' | 'readsMs'} */ field) =>
        summary(own.map((cost) => cost[field]))
      return [state, { verifyMs: figure('verifyMs'), readsMs: figure('readsMs') }]
    }),
  )
  const besideFigures = Object.fromEntries(
    /** @type {const} */ (['aloneP50Us', 'aloneP99Us', 'besideP50Us', 'besideP99Us']).map(
      (field) => [field, summary(besides.filter(({ wentOn }) => wentOn).map((one) => one[field]))],
    ),
  )
  const victimFigures = Object.fromEntries(
    /** @type {const} */ (['aloneP99Us', 'besideP99Us', 'prefetchMs']).map((field) => [
      field,
      summary(victims.map((one) => one[field])),
    ]),
  )
  /** @type {Record<string, Ratio>} */
  const ratios = Object.fromEntries(
    Object.entries(ratiosOf(measured)).flatMap(([name, values]) => {
      const ratio = ratioOf(values, targets[/** @type {keyof typeof targets} */ (name)])
      return ratio ? [[name, ratio]] : []
    }),
  )
  return {
    machine,
    ratios,
    limits: {
      scenes: limitFigures,
      fault: faultFigures,
      comparison: comparisonFigures,
      beside: besideFigures,
      victim: victimFigures,
    },
    results,
    choices: choicesOf(samples),
    scenes,
    samples: { cells: samples, limits, faults, comparisons, besides, victims },
  }
}

/** @typedef {ReturnType<typeof makeReport>} Report */
