// @ts-check
// How close a restore is to the limits of the machine, and how far the alternatives are.
//
//   npm run bench [-- --rounds 15 --only linux --quick --json --chart chart.svg]
//
// A guest replays a trace (bench/replay): arms in turns, one process per sample, with a warm and a
// cold page cache. Between them run limits (bench/native), which only make the system calls.
// bench/README.md defines the figures.
import { randomInt } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { PageCache } from '../native/guest/driver/page-cache.mjs'
import { abortOnInterrupt } from './lib/interrupt.mjs'
import { describeMachine, root } from './lib/machine.mjs'
import { Progress } from './lib/progress.mjs'
import { drawChart } from './replay/chart.mjs'
import { chooseCells, measure } from './replay/measure.mjs'
import { printReport } from './replay/print.mjs'
import { makeReport } from './replay/report.mjs'

const usage = `usage: npm run bench -- [options]

  --rounds N     samples of each kind (15; with --quick 3); of sets above 64 MiB a third of them
  --only TEXT    cells with that in their name, such as linux-64 or kvm
  --quick        few rounds, and a part of the cells: about four minutes
  --choice       only the cells with the arms that auto chooses between
  --list         only print the names of the cells
  --cache DIR    where memory files are kept between runs (build/scenes; 9 GB)
  --json         one object with every sample on stdout
  --chart FILE   write the time to response against the size of the working set as an SVG
  --from FILE    print or draw the output of --json, and measure nothing

Ctrl-C ends the run with a report of the samples so far, if there are any.
`

function parseOptions() {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' },
      only: { type: 'string', default: '' },
      quick: { type: 'boolean', default: false },
      choice: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      cache: { type: 'string', default: join(root, 'build/scenes') },
      json: { type: 'boolean', default: false },
      chart: { type: 'string' },
      from: { type: 'string' },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const rounds = Number(values.rounds ?? (values.quick ? 3 : 15))
  if (!Number.isSafeInteger(rounds) || rounds < 1) {
    throw new TypeError('--rounds takes a whole number from 1')
  }
  return { ...values, rounds }
}

/** @typedef {ReturnType<typeof parseOptions>} Options */

/**
 * @param {Options} options
 * @param {AbortSignal} signal
 */
async function run(options, signal) {
  const progress = new Progress(process.stderr)
  await mkdir(options.cache, { recursive: true })
  const folder = await mkdtemp(join(options.cache, 'run-'))
  const cache = await PageCache.open()
  // Only for the bench's scenes; the sampling processes read it.
  process.env.REAP_TRACE_PROOFS = join(options.cache, 'proofs')
  try {
    const { rounds, cache: scenesFolder } = options
    const seed = randomInt(2 ** 31)
    const machine = { ...describeMachine(scenesFolder), rounds, seed }
    const context = { rounds, seed, scenesFolder, folder, cache, progress, signal }
    const measured = await measure(chooseCells(options), context)
    if (measured.samples.length === 0) signal.throwIfAborted()
    return makeReport({ machine, ...measured })
  } finally {
    progress.end()
    await cache.close()
    await rm(folder, { recursive: true, force: true })
  }
}

/** @type {AbortSignal | undefined} */
let interrupted

/**
 * @param {string} path
 * @returns {Promise<import('./replay/report.mjs').Report>}
 */
async function readReport(path) {
  const text = await readFile(path, 'utf8')
  try {
    const report = JSON.parse(text)
    const parts = ['machine', 'ratios', 'limits', 'results', 'choices', 'scenes']
    if (parts.every((part) => typeof report[part] === 'object')) return report
  } catch {}
  throw new TypeError(`${path} is not what npm run bench -- --json has written`)
}

async function main() {
  const options = parseOptions()
  if (options.help || options.list) {
    const names = chooseCells(options).map(({ name }) => `${name}\n`)
    process.stdout.write(options.help ? usage : names.join(''))
    return
  }
  interrupted = abortOnInterrupt()
  const report =
    options.from === undefined ? await run(options, interrupted) : await readReport(options.from)
  if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`)
  else printReport(report, process.stdout)
  if (interrupted?.aborted) process.exitCode = 130
  // Last, so that a failing chart loses no samples.
  if (options.chart) await writeFile(options.chart, drawChart(report))
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${/** @type {Error} */ (error).message}\n`)
  process.exitCode = interrupted?.aborted ? 130 : error instanceof TypeError ? 2 : 1
}
