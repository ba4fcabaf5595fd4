// @ts-check
// Prints a report as text.
import { figure, ratioLines } from '../lib/figures.mjs'
import { huge, middle } from './cells.mjs'

/**
 * @param {import('./report.mjs').Report} report
 * @param {{ write(text: string): unknown }} stream
 */
export function printReport({ machine, ratios, limits, results, choices }, stream) {
  const line = (text = '') => stream.write(`${text}\n`)
  const width = Math.max(24, ...Object.keys(results).map((name) => name.length))
  const row = (/** @type {string} */ name, /** @type {readonly string[]} */ values) =>
    line(`${name.padEnd(width)}${values.map((value) => value.padStart(10)).join('')}`)

  row('ms', ['median', 'p25', 'p75', 'p99', 'faults', 'samples'])
  for (const [name, { responseMs, sinceConnectMs, faults }] of Object.entries(results)) {
    const shown = name.includes('paused') ? sinceConnectMs : responseMs
    if (!shown) continue
    const { median, p25, p75, p99, samples } = shown
    const times = [median, p25, p75, p99].map((value) => figure(value))
    row(name, [...times, figure(faults?.median, 0), `${samples}`])
  }
  line(
    '\npaused: from the handshake to the last page; else from the restore request to the response',
  )

  for (const [name, { installMs, readMs }] of Object.entries(limits.scenes)) {
    line(
      `limits of ${name}: install ${figure(installMs.median)} ms (${installMs.way} threads), ` +
        `read ${figure(readMs.median)} ms (${readMs.way} bytes)`,
    )
  }
  const { bareUs, oursUs, bareP99Us, oursP99Us } = limits.fault
  line(
    `a served fault, p50 (p99): ours ${figure(oursUs?.median)} (${figure(oursP99Us?.median)}) µs, ` +
      `the plainest handler ${figure(bareUs?.median)} (${figure(bareP99Us?.median)}) µs`,
  )
  // Older reports have none of these.
  const { comparison = {}, beside = {}, victim = {} } = limits
  for (const [cache, { verifyMs, readsMs }] of Object.entries(comparison)) {
    if (!verifyMs) continue
    line(
      `a comparison of ${middle}, ${cache}: ${figure(verifyMs.median)} ms, ` +
        `its reads alone ${figure(readsMs?.median)} ms`,
    )
  }
  if (beside.besideP99Us) {
    const of = (/** @type {string} */ way) =>
      `${figure(beside[`${way}P50Us`]?.median)} (${figure(beside[`${way}P99Us`]?.median)})`
    line(`a fault, p50 (p99): beside comparisons ${of('beside')} µs, alone ${of('alone')} µs`)
  }
  if (victim.besideP99Us) {
    line(
      `a fault of another VM, p99: during a prefetch of ${huge} ${figure(victim.besideP99Us.median)} µs, ` +
        `alone ${figure(victim.aloneP99Us?.median)} µs; the prefetch ${figure(victim.prefetchMs?.median)} ms`,
    )
  }
  line()
  for (const text of ratioLines(ratios)) line(text)
  if (choices.length > 0) {
    line()
    row('auto over', ['best', 'p25', 'p75', 'file', 'uffd', 'cache', 'ms'])
    for (const { scene, guest, cache, best, overBest, overKernelFile, ...rest } of choices) {
      row(`${scene}, ${guest}, ${cache}: ${best}`, [
        ...[overBest?.median, overBest?.p25, overBest?.p75, overKernelFile?.median].map((value) =>
          figure(value, 2),
        ),
        `${rest.uffd}`,
        `${rest.pageCache}`,
        figure(rest.decidedMs?.median, 2),
      ])
    }
    line(
      'best: over the fastest arm, named; file: over kernel-file; uffd, cache: how often chosen; ms: what that took',
    )
  }
  line(
    `\n${Object.entries(machine)
      .map(([name, value]) => `${name}: ${value}`)
      .join(', ')}`,
  )
}
