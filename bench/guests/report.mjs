import { median, summary } from '../../src/cli/measure/statistics.mjs'
import { pairedRatio } from '../replay/report.mjs'

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

const timesOf = (samples, arm) =>
  new Map(
    samples
      .filter((sample) => sample.arm === arm)
      .map(({ round, responseMs }) => [round, responseMs]),
  )

function ratioOf(over, under) {
  const ratios = summary(pairedRatio(over, under))
  return ratios && { value: ratios.median, p25: ratios.p25, p75: ratios.p75, pairs: ratios.samples }
}

/** `auto` in one cell compared with the other arms, and its choices. */
function autoOf(samples, cache) {
  const auto = timesOf(samples, 'auto')
  const others = [...new Set(samples.map(({ arm }) => arm))].filter((arm) => arm !== 'auto')
  if (auto.size === 0 || others.length === 0) return undefined
  const medianOf = (arm) => median([...timesOf(samples, arm).values()])
  const best = others.reduce((a, b) => (medianOf(b) < medianOf(a) ? b : a))
  const chosen = samples.filter(({ arm }) => arm === 'auto')
  const choices = {}
  for (const { choice } of chosen) choices[choice] = (choices[choice] ?? 0) + 1
  return {
    best,
    autoOverBest: ratioOf(auto, timesOf(samples, best)),
    ...(cache === 'warm' && { autoOverKernelFile: ratioOf(auto, timesOf(samples, 'kernel-file')) }),
    choices,
    prepareMs: summary(chosen.map(({ prepareMs }) => prepareMs)),
  }
}

/**
 * One object with everything: per function the recording, the time of a warm call, the cells (page
 * cache × input × arm) in medians and quantiles, the result of `auto` in each, and every sample.
 *
 * A cell's overhead is its response time minus that of a warm call with the same input; `gone` is
 * the share of on-demand's overhead that the working-set arm saves.
 */
export function makeReport(results, machine, { arms, caches }) {
  const functions = results.map(({ guest, record, warm, samples }) => {
    const warmMs = Object.fromEntries(inputs.map((input, i) => [input, median(warm[i])]))
    const cells = {}
    const auto = {}
    for (const cache of caches) {
      cells[cache] = {}
      auto[cache] = {}
      for (const input of inputs) {
        const those = samples.filter((sample) => sample.cache === cache && sample.input === input)
        cells[cache][input] = Object.fromEntries(
          arms.map((arm) => [
            arm,
            summarize(
              those.filter((sample) => sample.arm === arm),
              warmMs[input],
            ),
          ]),
        )
        auto[cache][input] = autoOf(those, cache)
      }
    }
    const gone = Object.fromEntries(
      caches.flatMap((cache) => {
        const { 'on-demand': slow, 'working-set': fast } = cells[cache].same
        return slow && fast ? [[cache, 1 - fast.overheadMs.median / slow.overheadMs.median]] : []
      }),
    )
    return {
      name: guest.name,
      memoryBytes: guest.memoryBytes,
      pages: record.pages,
      meanRun: record.pages / record.extents,
      diskPages: record.diskPages,
      warmMs,
      cells,
      auto,
      gone,
      wrong: samples.filter(({ right }) => !right).length,
      samples,
    }
  })
  return { machine, arms, caches, functions }
}

/** Violated invariants that hold on any machine; empty if there are none. */
export function checks({ functions, arms, caches }, { quick }) {
  const failed = []
  for (const { name, wrong, pages, cells } of functions) {
    if (wrong > 0) failed.push(`${name}: ${wrong} wrong answers`)
    if (!arms.includes('working-set')) continue
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
const percent = (share) => (share === undefined ? '–' : `${number(share * 100)} %`)
const spread = (ratio) =>
  ratio ? `${number(ratio.value, 2)} (${number(ratio.p25, 2)}–${number(ratio.p75, 2)})` : '–'

function table(head, rows) {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i].length)))
  const line = (row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ')
  return [head, ...rows].map((row) => `${line(row).trimEnd()}\n`).join('')
}

function functionTable({ functions, caches }) {
  const residual = ({ cells }, input) =>
    number(cells[caches[0]][input]['working-set']?.residualFaults.median)
  return table(
    [
      'function',
      'memory',
      'pages',
      'mean run',
      'of disks',
      'warm call',
      'residual same',
      'other',
      ...caches.map((cache, i) => (i === 0 ? `gone ${cache}` : cache)),
    ],
    functions.map((each) => [
      each.name,
      `${each.memoryBytes / 2 ** 20} MiB`,
      number(each.pages),
      number(each.meanRun, 1),
      each.diskPages > 0 ? number(each.diskPages) : '–',
      `${number(each.warmMs.same, 1)} ms`,
      residual(each, 'same'),
      residual(each, 'other'),
      ...caches.map((cache) => percent(each.gone[cache])),
    ]),
  )
}

const overheadTable = ({ functions, arms }, cache) =>
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
  )

function autoTable({ functions, caches }) {
  const rows = functions.flatMap(({ name, auto }) =>
    caches.flatMap((cache) =>
      inputs.flatMap((input) => {
        const found = auto[cache][input]
        if (!found) return []
        const { best, autoOverBest, autoOverKernelFile, choices, prepareMs } = found
        const chose = Object.entries(choices).map(([choice, times]) => `${times} × ${choice}`)
        const ratios = [spread(autoOverBest), spread(autoOverKernelFile)]
        return [
          [name, cache, input, chose.join(', '), number(prepareMs.median, 1), best, ...ratios],
        ]
      }),
    ),
  )
  const head = ['function', 'page cache', 'input', 'chose', 'prepare', 'best']
  return rows.length > 0 ? table([...head, 'auto / best', 'auto / kernel-file'], rows) : ''
}

const phaseTable = ({ functions, arms }, cache) =>
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
    functions.flatMap(({ name, cells, auto }) =>
      arms.map((arm) => {
        const { phases, faults } = cells[cache].same[arm]
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
          isServed(arm, auto[cache].same) ? number(faults.median) : '–',
        ]
      }),
    ),
  )

/** True if the faults of an arm are counted by a handler, not by the kernel. */
const isServed = (arm, auto) =>
  arm === 'auto'
    ? Object.keys(auto?.choices ?? {}).every((choice) => choice === 'uffd')
    : !['kernel-file', 'page-cache'].includes(arm)

/** Prints the report as text. */
export function printReport(report, stream) {
  const { machine, functions, caches } = report
  stream.write(functionTable(report))
  for (const cache of caches) {
    stream.write(`\ncold start less a warm call, ms: median (p99), page cache ${cache}\n`)
    stream.write(overheadTable(report, cache))
  }
  const autos = autoTable(report)
  if (autos) {
    stream.write(
      "\nwhat auto chose, ms to prepare it, and its response time over that of the cell's best other arm\n" +
        'and of kernel-file: median of the rounds (quartiles)\n' +
        autos,
    )
  }
  const [cache] = caches
  stream.write(
    `\nphases of a cold start with the recorded input, page cache ${cache}, medians in ms\n` +
      phaseTable(report, cache) +
      '\nset there: since the restore request. fetch of working-set is the time in which it was read, install\n' +
      'a sum over its workers; they overlap each other and the VMM. reap fetches before the VMM is\n' +
      'started, as published, past the page cache unless it is warm. p99 of few rounds is next to their\n' +
      'most.\n',
  )
  const { kernel, cpu, storage, node, commit, date, rounds } = machine
  const samples = functions.reduce((sum, { samples }) => sum + samples.length, 0)
  const wrong = functions.reduce((sum, { wrong }) => sum + wrong, 0)
  stream.write(
    `\n${number(samples - wrong)} of ${number(samples)} answers right; ${rounds} interleaved rounds\n` +
      `${kernel}, ${cpu}, disk ${storage}, Node ${node}, ${commit}, ${date.slice(0, 10)}\n`,
  )
}
