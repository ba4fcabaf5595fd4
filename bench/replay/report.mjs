// @ts-check
import { summary } from '../lib/statistics.mjs'
import { cells, large, middle, nameOf, small } from './cells.mjs'

/**
 * @typedef {{ cell: string, round: number } & Record<string, any>} Sample
 * @typedef {import('./limits.mjs').Limits} Limits
 */

/** What each ratio should be, and how far it is known to be from that (bench/README.md). */
const targets = /** @type {const} */ ({
  installEfficiency: ['at least', 0.9],
  coldEfficiency: ['at least', 0.8],
  reapOverOursCold: ['at least', 1.8],
  reapOverOursWarm: ['at least', 2.5],
  onDemandOverOursCold: ['at least', 15],
  onDemandOverOursWarm: ['at least', 7],
  demandFaultOverBare: ['at most', 0.8],
  recordOverOnDemand: ['at most', 1.03],
  busyLoopOverIdle: ['at most', 1.03],
  concurrent64: ['at least', 0.8],
  sessionBytes: ['at most', 200 * 1024],
  growth: ['at most', 1.15],
})

/**
 * @param {{ machine: object, scenes: readonly import('./scene.mjs').Scene[], samples: readonly Sample[], limits: Limits }} measured
 */
export function makeReport({ machine, scenes, samples, limits }) {
  const of = (/** @type {string} */ cell, /** @type {string} */ field) =>
    summary(samples.filter((sample) => sample.cell === cell).map((sample) => sample[field]))
  const results = Object.fromEntries(
    cells.map(({ name }) => [
      name,
      Object.fromEntries(
        ['responseMs', 'sinceConnectMs', 'faults', 'lateFaults', 'residualFaults'].map((field) => [
          field,
          of(name, field),
        ]),
      ),
    ]),
  )
  const median = (/** @type {object} */ cell, field = 'responseMs') =>
    of(nameOf(cell), field)?.median ?? NaN
  const pagesOf = (/** @type {string} */ name) =>
    scenes.find((scene) => scene.name === name)?.pages ?? NaN
  const limit = (/** @type {string} */ name) =>
    limits.scenes[name] ?? { installMs: NaN, readMs: NaN }

  const paused = (/** @type {string} */ scene, cache = 'warm') =>
    median({ scene, arm: 'working-set', paused: true, cache }, 'sinceConnectMs')
  const arm = (/** @type {string} */ name, cache = 'warm') =>
    median({ scene: middle, arm: name, cache })
  const crowd = { scene: small, arm: 'working-set', concurrent: 64, paused: true, cache: 'warm' }
  const { installMs, readMs } = limit(middle)
  const ratios = {
    installEfficiency: installMs / paused(middle),
    coldEfficiency: Math.max(installMs, readMs) / paused(middle, 'cold'),
    reapOverOursCold: arm('reap', 'cold') / arm('working-set', 'cold'),
    reapOverOursWarm: arm('reap') / arm('working-set'),
    onDemandOverOursCold: arm('on-demand', 'cold') / arm('working-set', 'cold'),
    onDemandOverOursWarm: arm('on-demand') / arm('working-set'),
    demandFaultOverBare: limits.fault.oursUs / limits.fault.bareUs,
    recordOverOnDemand: arm('record') / arm('on-demand'),
    busyLoopOverIdle:
      median({ scene: middle, arm: 'working-set', busy: true, cache: 'warm' }) / arm('working-set'),
    concurrent64: median(crowd, 'pagesPerMs') / (pagesOf(small) / limit(small).installMs),
    sessionBytes: median(crowd, 'sessionBytes'),
    growth: paused(large) / pagesOf(large) / (paused(small) / pagesOf(small)),
  }
  const judged = Object.fromEntries(
    Object.entries(targets).map(([name, [bound, target]]) => {
      const value = ratios[/** @type {keyof typeof ratios} */ (name)]
      const met = bound === 'at least' ? value >= target : value <= target
      return [name, { value, bound, target, met: Number.isNaN(value) ? undefined : met }]
    }),
  )
  return { machine, ratios: judged, limits, results, scenes, samples }
}

const figure = (/** @type {number | undefined} */ value, digits = 1) =>
  value === undefined || Number.isNaN(value)
    ? '–'
    : value.toLocaleString('en-US', {
        minimumFractionDigits: digits,
        maximumFractionDigits: digits,
      })

/**
 * @param {ReturnType<typeof makeReport>} report
 * @param {{ write(text: string): unknown }} stream
 */
export function printReport({ machine, ratios, limits, results }, stream) {
  const width = Math.max(...cells.map(({ name }) => name.length))
  const columns = ['median', 'p25', 'p75', 'p99', 'faults']
  stream.write(`${'ms'.padEnd(width)}${columns.map((name) => name.padStart(11)).join('')}\n`)
  for (const [name, { responseMs, sinceConnectMs, faults }] of Object.entries(results)) {
    const shown = name.includes('paused') ? sinceConnectMs : responseMs
    if (!shown) continue
    const { median, p25, p75, p99 } = shown
    const values = [median, p25, p75, p99].map((value) => figure(value).padStart(11)).join('')
    stream.write(`${name.padEnd(width)}${values}${figure(faults?.median, 0).padStart(11)}\n`)
  }
  stream.write(
    `\npaused: from the handshake to the last page; else from the restore request to the response\n`,
  )
  for (const [name, { installMs, readMs }] of Object.entries(limits.scenes)) {
    stream.write(`limits of ${name}: install ${figure(installMs)} ms, read ${figure(readMs)} ms\n`)
  }
  const { bareUs, oursUs, bareP99Us, oursP99Us } = limits.fault
  stream.write(`a served fault, p50 (p99): ours ${figure(oursUs)} (${figure(oursP99Us)}) µs, `)
  stream.write(`the plainest handler ${figure(bareUs)} (${figure(bareP99Us)}) µs\n\n`)
  for (const [name, { value, bound, target, met }] of Object.entries(ratios)) {
    if (met === undefined) continue
    const verdict = met ? '' : '   missed'
    stream.write(
      `${name.padEnd(24)}${figure(value, 2).padStart(12)}   ${bound} ${target}${verdict}\n`,
    )
  }
  stream.write(`\n${Object.values(machine).join(', ')}\n`)
}
