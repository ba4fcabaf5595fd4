import { median, summary } from '../lib/statistics.mjs'
import { arms, caches } from './arms.mjs'

const inputs = ['same', 'other']
const phaseNames = [
  'startMs',
  'loadMs',
  'resumeMs',
  'invokeMs',
  'fetchMs',
  'installMs',
  'prefetchedMs',
]

function summarize(samples, warmMs) {
  const of = (field) => summary(samples.map((sample) => sample[field]))
  const response = of('responseMs')
  return {
    responseMs: response,
    overheadMs: summary(samples.map(({ responseMs }) => responseMs - warmMs)),
    faults: of('faults'),
    lateFaults: of('lateFaults'),
    residualFaults: of('residualFaults'),
    phases: Object.fromEntries(
      phaseNames.map((name) => [name, median(samples.map(({ phases }) => phases[name]))]),
    ),
  }
}

/**
 * One object with all: per function what was recorded, what a warm call costs, the cells (arm × page
 * cache × input) in medians and quantiles, and every sample.
 *
 * A cell's overhead is its response time less that of a warm call with the same input; `gone` is the
 * share of on-demand's overhead that the working-set arm does not have.
 */
export function makeReport(results, machine) {
  const functions = results.map(({ guest, record, warm, samples }) => {
    const warmMs = Object.fromEntries(inputs.map((input, i) => [input, median(warm[i])]))
    const cells = {}
    for (const cache of caches) {
      for (const input of inputs) {
        for (const arm of arms) {
          const those = samples.filter(
            (sample) => sample.cache === cache && sample.input === input && sample.arm === arm,
          )
          cells[cache] ??= {}
          cells[cache][input] ??= {}
          cells[cache][input][arm] = summarize(those, warmMs[input])
        }
      }
    }
    const gone = Object.fromEntries(
      caches.map((cache) => {
        const { 'on-demand': slow, 'working-set': fast } = cells[cache].same
        return [cache, 1 - fast.overheadMs.median / slow.overheadMs.median]
      }),
    )
    return {
      name: guest.name,
      memoryBytes: guest.memoryBytes,
      pages: record.pages,
      meanRun: record.pages / record.extents,
      warmMs,
      cells,
      gone,
      wrong: samples.filter(({ right }) => !right).length,
      samples,
    }
  })
  return { machine, functions }
}

/** What must hold whatever the machine does; empty when it does. */
export function checks({ functions }, { quick }) {
  const failed = []
  for (const { name, wrong, pages, cells } of functions) {
    if (wrong > 0) failed.push(`${name}: ${wrong} wrong answers`)
    for (const cache of caches) {
      const { median, least } = cells[cache].same['working-set'].residualFaults
      const [count, most] = quick ? [least, 0.03] : [median, 0.01]
      if (count > pages * most) {
        failed.push(`${name}: ${count} residual faults of ${pages} pages, ${cache}`)
      }
    }
  }
  return failed
}

const number = (value, digits = 0) =>
  value === undefined
    ? '–'
    : value.toLocaleString('en-US', {
        minimumFractionDigits: digits,
        maximumFractionDigits: digits,
      })
const percent = (share) => `${number(share * 100)} %`

function table(head, rows) {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)))
  const line = (row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')
  return [head, ...rows].map((row) => `${line(row).trimEnd()}\n`).join('')
}

/** The report for people. */
export function printReport({ machine, functions }, stream) {
  stream.write(
    table(
      [
        'function',
        'memory',
        'pages',
        'mean run',
        'warm call',
        'residual same',
        'other',
        'gone cold',
        'warm',
      ],
      functions.map(({ name, memoryBytes, pages, meanRun, warmMs, cells, gone }) => [
        name,
        `${memoryBytes / 2 ** 20} MiB`,
        number(pages),
        number(meanRun, 1),
        `${number(warmMs.same, 1)} ms`,
        number(cells.cold.same['working-set'].residualFaults.median),
        number(cells.cold.other['working-set'].residualFaults.median),
        percent(gone.cold),
        percent(gone.warm),
      ]),
    ),
  )
  for (const cache of caches) {
    stream.write(`\ncold start less a warm call, ms: median (p99), page cache ${cache}\n`)
    stream.write(
      table(
        ['function', 'input', ...arms],
        functions.flatMap(({ name, cells }) =>
          inputs.map((input) => [
            name,
            input,
            ...arms.map((arm) => {
              const { median, p99 } = cells[cache][input][arm].overheadMs
              return `${number(median)} (${number(p99)})`
            }),
          ]),
        ),
      ),
    )
  }
  stream.write('\nphases of a cold start with the recorded input, page cache cold, medians in ms\n')
  stream.write(
    table(
      [
        'function',
        'arm',
        'VMM start',
        'state load',
        'fetch',
        'install',
        'set there',
        'resume',
        'first response',
        'faults',
      ],
      functions.flatMap(({ name, cells }) =>
        arms.map((arm) => {
          const { phases, faults } = cells.cold.same[arm]
          const of = (field) => number(phases[field], 1)
          return [
            name,
            arm,
            of('startMs'),
            of('loadMs'),
            of('fetchMs'),
            of('installMs'),
            of('prefetchedMs'),
            of('resumeMs'),
            of('invokeMs'),
            arm === 'kernel-file' ? '–' : number(faults.median),
          ]
        }),
      ),
    ),
  )
  stream.write(
    '\nset there: since the restore request. fetch and install of working-set are sums over its workers,\n' +
      'which overlap each other and the VMM; reap fetches before the VMM is started, as published, past\n' +
      'the page cache when it is cold. p99 of few rounds is next to their most.\n',
  )
  const { kernel, cpu, storage, node, commit, date, rounds } = machine
  const samples = functions.reduce((sum, { samples }) => sum + samples.length, 0)
  const wrong = functions.reduce((sum, { wrong }) => sum + wrong, 0)
  stream.write(
    `\n${number(samples - wrong)} of ${number(samples)} answers right; ${rounds} interleaved rounds\n` +
      `${kernel}, ${cpu}, disk ${storage}, Node ${node}, ${commit}, ${date.slice(0, 10)}\n`,
  )
}
