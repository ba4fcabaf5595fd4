// @ts-check
// Time of a restore on Firecracker itself, with each arm, alone and many at once.
//
//   npm run bench:firecracker [-- --rounds 7 --arms reap,working-set --at-once 1,8 --quick --json]
//
// One snapshot of our own guest, restored in turns (bench/firecracker), from `snapshot/load` to the
// guest's answer. bench/README.md defines the figures.
import { randomInt } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { performance } from 'node:perf_hooks'
import { pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'
import * as current from '../dist/index.js'
import { MicroVm, microvmMissing } from '../native/guest/driver/microvm.mjs'
import { PageCache } from '../native/guest/driver/page-cache.mjs'
import { randomNumbers, shuffle } from '../src/cli/measure/random.mjs'
import { arms } from './firecracker/arms.mjs'
import { drawBurst } from './firecracker/chart.mjs'
import { firstRestores } from './firecracker/first-restores.mjs'
import { lazySnapshot } from './firecracker/lazy-snapshot.mjs'
import { printReport } from './firecracker/print.mjs'
import { checks, makeReport, nameOf } from './firecracker/report.mjs'
import { installLimitMs, takeSample } from './firecracker/sample.mjs'
import {
  filesOf,
  prepareScene,
  proveSet,
  requestByMib,
  WRITE_REQUEST,
} from './firecracker/scene.mjs'
import { calibrated } from './lib/calibration.mjs'
import { abortOnInterrupt } from './lib/interrupt.mjs'
import { describeMachine, root } from './lib/machine.mjs'
import { Progress } from './lib/progress.mjs'

const caches = /** @type {const} */ (['cold', 'warm'])
const hosts = /** @type {const} */ (['idle', 'busy'])

const usage = `usage: npm run bench:firecracker -- [options]

Restores a snapshot of 256 MiB on Firecracker, whose guest then asks for 30 MiB of it, in turns:

  file         Firecracker's File backend: it maps the memory file
  example      the minimal handler of Firecracker's example: one thread, one page per fault
  reap         REAP: the set is read before the load, and installed before a fault is answered
  on-demand    reap-trace without a working set
  record       the same, with recording
  working-set  reap-trace with a proven set
  held         the same, with the guest resumed when the set is installed
  before       working-set of another build (--before)
  page-cache   reap-trace without a handler: prefetchPageCache() beside File
  auto         planRestore() and restore(), which choose

  --rounds N     samples of each kind (7; with --quick 3)
  --arms a,b     of these (all)
  --caches a,b   of ${caches.join(', ')} (all)
  --hosts a,b    of ${hosts.join(', ')} (all): busy has an endless loop on each core, one restore at a time
  --at-once N,M  numbers of concurrent restores (1,8)
  --set-mib N    MiB that the guest asks for: ${Object.keys(requestByMib).join(', ')} (30)
  --writes       the guest writes to each page that it asks for (30 MiB)
  --before DIST  the dist folder of another build, for the arm before
  --quick        few rounds: a minute and a half
  --cache DIR    where proofs and the host's calibration are kept between runs (build/firecracker-bench)
  --chart FILE   write an SVG of the burst: VMs that have answered, against time
  --json         one object with every sample on stdout

FIRECRACKER names the binary (build/firecracker/firecracker, of scripts/fetch-firecracker.mjs).
Exits with 1 when an answer was wrong. Ctrl-C ends it with what was measured so far, if anything was.
`

/**
 * What of `known` an option names, in its order.
 *
 * @template {string} T
 * @param {string} what
 * @param {string | undefined} option
 * @param {readonly T[]} known
 */
function listOf(what, option, known) {
  const named = option?.split(',')
  const unknown = named?.filter((name) => !known.some((each) => each === name)) ?? []
  if (unknown.length > 0) {
    throw new TypeError(`there is no ${what} ${unknown.join(', ')}: ${known.join(', ')}`)
  }
  return named ? known.filter((name) => named.includes(name)) : known
}

/** @param {string} option @param {string} text */
function wholeNumber(option, text) {
  const number = Number(text)
  if (Number.isSafeInteger(number) && number >= 1) return number
  throw new TypeError(`${option} takes whole numbers from 1, got '${text}'`)
}

function parseOptions() {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' },
      arms: { type: 'string' },
      caches: { type: 'string' },
      hosts: { type: 'string' },
      'at-once': { type: 'string', default: '1,8' },
      'set-mib': { type: 'string', default: '30' },
      writes: { type: 'boolean', default: false },
      before: { type: 'string' },
      quick: { type: 'boolean', default: false },
      cache: { type: 'string', default: join(root, 'build/firecracker-bench') },
      chart: { type: 'string' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const there = arms.filter((arm) => arm !== 'before' || values.before !== undefined)
  const requests = new Map(Object.entries(requestByMib))
  const request = requests.get(values['set-mib'])
  if (request === undefined) {
    throw new TypeError(
      `--set-mib takes ${[...requests.keys()].join(', ')}, got '${values['set-mib']}'`,
    )
  }
  if (values.writes && values['set-mib'] !== '30') {
    throw new TypeError('--writes goes with 30 MiB alone')
  }
  return {
    ...values,
    request: values.writes ? WRITE_REQUEST : request,
    rounds: wholeNumber('--rounds', values.rounds ?? (values.quick ? '3' : '7')),
    arms: listOf('arm', values.arms, there),
    caches: listOf('page cache', values.caches, caches),
    hosts: listOf('host', values.hosts, hosts),
    atOnce: values['at-once'].split(',').map((text) => wholeNumber('--at-once', text)),
  }
}

/** @typedef {ReturnType<typeof parseOptions>} Options */

/**
 * @param {Options} options
 * @param {import('./firecracker/sample.mjs').Context} context
 * @param {{ cache: PageCache, progress: Progress, seed: number }} tools
 */
async function measure(options, context, { cache, progress, seed }) {
  const files = filesOf(context.scene)
  const setCache = (/** @type {'cold' | 'warm'} */ state) => cache.set(state, files)
  const places = options.hosts.flatMap((host) => {
    const busy = host === 'busy'
    return (busy ? [1] : options.atOnce).flatMap((atOnce) =>
      options.caches.map((state) => ({ atOnce, cache: state, busy })),
    )
  })
  /** @type {{ -readonly [K in 'samples' | 'limits' | 'lazySnapshots' | 'firstRestores']: import('./firecracker/report.mjs').Measured[K][number][] }} */
  const measured = { samples: [], limits: [], lazySnapshots: [], firstRestores: [] }
  const { samples } = measured
  const total = places.length * options.arms.length * options.rounds
  const { signal } = context
  let startedAt = performance.now()
  let done = 0
  /**
   * @template T
   * @param {string} text
   * @param {() => Promise<T>} run
   */
  const step = async (text, run) => {
    const leftMs =
      samples.length > 0
        ? ((performance.now() - startedAt) / samples.length) * (total - samples.length)
        : undefined
    progress.say(text, samples.length / total, leftMs)
    signal.throwIfAborted()
    try {
      return await run()
    } catch (error) {
      throw new Error(`${text}: ${/** @type {Error} */ (error).message}`, { cause: error })
    }
  }
  const measureOncePerRound = async (/** @type {number} */ round) => {
    const number = `round ${round + 1}`
    const installMs = await step(`installs, ${number}`, () => installLimitMs(context.scene, signal))
    measured.limits.push({ round, installMs })
    await setCache('warm')
    if (options.arms.includes('on-demand')) {
      const times = await step(`snapshots, ${number}`, () => lazySnapshot(context))
      measured.lazySnapshots.push({ round, ...times })
    }
    if (options.arms.includes('working-set')) {
      const times = await step(`first restores, ${number}`, () => firstRestores(context))
      measured.firstRestores.push({ round, ...times })
    }
  }
  try {
    // The first round warms up: code is not compiled, threads and buffers are not allocated yet.
    for (let round = -1; round < options.rounds; round++) {
      if (round === 0) startedAt = performance.now()
      if (round >= 0 && options.hosts.includes('idle')) await measureOncePerRound(round)
      for (const place of places) {
        // Drawn for each place of a round, so that no arm always follows the same one.
        const order = [...options.arms]
        shuffle(order, randomNumbers(seed + done))
        for (const arm of order) {
          const when = round < 0 ? 'warming up' : `round ${round + 1}`
          const sample = await step(`${arm}, ${nameOf(place)}, ${when}`, () =>
            takeSample({ arm, ...place, round }, context, setCache),
          )
          done++
          if (round >= 0) samples.push(sample)
        }
      }
    }
  } catch (error) {
    // Ctrl-C on a terminal also reaches the child processes.
    if (!signal.aborted) throw error
  }
  return measured
}

/** What Firecracker says it is. */
async function firecrackerVersion() {
  const vm = await MicroVm.start()
  try {
    return (await vm.call('GET', '/version')).firecracker_version
  } finally {
    await vm.kill()
  }
}

/** @param {Options} options @param {AbortSignal} signal */
async function run(options, signal) {
  const progress = new Progress(process.stderr)
  await mkdir(options.cache, { recursive: true })
  // Only for this bench; read with the first restore.
  process.env.REAP_TRACE_PROOFS = join(options.cache, 'proofs')
  process.env.REAP_TRACE_CALIBRATION = join(options.cache, 'calibration.json')
  /** @type {typeof current | undefined} */
  const before =
    options.before === undefined
      ? undefined
      : await import(pathToFileURL(resolve(options.before, 'index.js')).href)
  const folder = await mkdtemp(join(options.cache, 'run-'))
  const cache = await PageCache.open()
  try {
    progress.say('making the snapshot, and recording it')
    const scene = await prepareScene(folder, options.request)
    await proveSet(scene, before ? [current, before] : [current])
    if (options.arms.includes('auto')) {
      await calibrated({ folder: options.cache, progress, signal })
    }
    const seed = randomInt(2 ** 31)
    const machine = {
      firecracker: await firecrackerVersion(),
      ...describeMachine(folder),
      guest: options.writes ? 'writes' : 'reads',
      rounds: options.rounds,
      seed,
    }
    const context = { scene, folder, signal, ...(before && { before }) }
    const measured = await measure(options, context, { cache, progress, seed })
    if (measured.samples.length === 0) signal.throwIfAborted()
    const { pages, extents, memoryMib } = scene
    return makeReport({ machine, scene: { pages, extents, memoryMib }, ...measured })
  } finally {
    progress.end()
    await cache.close()
    await rm(folder, { recursive: true, force: true })
  }
}

/** @type {AbortSignal | undefined} */
let interrupted

async function main() {
  const options = parseOptions()
  if (options.help) {
    process.stdout.write(usage)
    return
  }
  const missing = microvmMissing()
  if (missing) {
    process.stderr.write(`skipped: needs ${missing}\n`)
    return
  }
  if (options.before !== undefined && !existsSync(resolve(options.before, 'index.js'))) {
    throw new TypeError(
      `--before takes the dist folder of a build: no index.js in ${options.before}`,
    )
  }
  interrupted = abortOnInterrupt()
  const report = await run(options, interrupted)
  if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`)
  else printReport(report, process.stdout)
  // Last, so that a failing chart loses no samples.
  if (options.chart) await writeFile(options.chart, drawBurst(report))
  const failed = checks(report)
  for (const text of failed) process.stderr.write(`failed: ${text}\n`)
  if (interrupted?.aborted) process.exitCode = 130
  else if (failed.length > 0) process.exitCode = 1
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${/** @type {Error} */ (error).message}\n`)
  process.exitCode = interrupted?.aborted ? 130 : error instanceof TypeError ? 2 : 1
}
