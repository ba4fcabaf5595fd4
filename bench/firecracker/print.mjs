// @ts-check
// Prints a report as text.
import { figure, ratioLines } from '../lib/figures.mjs'

/**
 * @param {import('./report.mjs').Report} report
 * @param {{ write(text: string): unknown }} stream
 */
export function printReport(report, stream) {
  const { machine, ratios, results, answers, wrong, scene } = report
  const line = (text = '') => stream.write(`${text}\n`)
  const row = (/** @type {string} */ name, /** @type {readonly string[]} */ values) =>
    line(`${name.padEnd(20)}${values.map((value) => value.padStart(10)).join('')}`.trimEnd())

  const head = ['all', 'p25', 'p75', 'VM p50', 'VM p99', 'CPU', 'faults', 'late', 'residual']
  for (const [place, arms] of Object.entries(results)) {
    row(place, head)
    for (const [arm, { allMs, vmMs, cpuMs, faults, lateFaults, residualFaults, choices }] of byTime(
      arms,
    )) {
      const times = [allMs?.median, allMs?.p25, allMs?.p75, vmMs?.median, vmMs?.p99, cpuMs?.median]
      const counts = [faults, lateFaults, residualFaults].map((count) => figure(count?.median, 0))
      const chose = Object.entries(choices).map(([choice, count]) => `${count} × ${choice}`)
      row(arm, [...times.map((value) => figure(value)), ...counts, `  ${chose.join(', ')}`])
    }
    line()
  }
  line(
    'ms; all: until the last guest had answered, median and quartiles of the rounds; VM: of each, since\n' +
      'the same start; CPU: of all processes, a restore; faults that a handler had to answer, a VM',
  )
  const perRound = /** @type {const} */ ([
    ['limit of installing the set', report.installLimitMs],
    ['full snapshot of a lazily restored VM', report.lazySnapshotMs],
    ['full snapshot of a resident VM', report.residentSnapshotMs],
    ['first restore of a process', report.firstRestoreMs],
    ['tenth restore of a process', report.tenthRestoreMs],
  ])
  for (const [what, times] of perRound) {
    if (!times) continue
    const [middle, low, high] = [times.median, times.p25, times.p75].map((value) => figure(value))
    line(`${what}: ${middle} ms (${low} to ${high})`)
  }
  line()
  for (const text of ratioLines(ratios)) line(text)
  const { autoOverBest } = ratios
  if (autoOverBest?.place) line(`autoOverBest is of ${autoOverBest.place}`)
  line(
    `\n${answers - wrong} of ${answers} answers right; ` +
      `${figure(scene.pages, 0)} pages in ${figure(scene.extents, 0)} runs of ${scene.memoryMib} MiB`,
  )
  line(
    Object.entries(machine)
      .map(([name, value]) => `${name}: ${value}`)
      .join(', '),
  )
}

/**
 * Sorts the arms, fastest first. @template {{ allMs: Record<string, number> | undefined }} T @param
 * {Record<string, T>} arms
 */
const byTime = (arms) =>
  Object.entries(arms).sort(
    ([, a], [, b]) => (a.allMs?.median ?? Infinity) - (b.allMs?.median ?? Infinity),
  )
