// @ts-check
// Records the runs that the learning is measured with, into bench/learning/traces:
//
//   npm run build && node bench/learning/record.mjs [--scenarios pyaes,nodejs-child-1] [--runs 40] [--seed 1]
//
// Each run is a restore of a Linux guest's snapshot (native/guest/linux) on demand, with one request.
// Scenarios of snapshots that a snapshot comes from, or is compared with, are recorded with it.
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { interposerEnvironment, serve } from '../../dist/index.js'
import { defaultCacheFolder, prepareGuests } from '../../native/guest/linux/index.mjs'
import { abortOnInterrupt } from '../lib/interrupt.mjs'
import { Progress } from '../lib/progress.mjs'
import { answersTo, ask } from './answers.mjs'
import { makePlans } from './scenarios.mjs'
import { writeScenario } from './traces.mjs'

/** @typedef {import('../../native/guest/linux/guest.mjs').Guest} Guest */
/** @typedef {import('../../native/guest/linux/guest.mjs').GuestVm} GuestVm */
/** @typedef {import('./inputs.mjs').Drawn} Drawn */
/** @typedef {import('./scenarios.mjs').Plan} Plan */
/** @typedef {import('./traces.mjs').Run} Run */

const pageSize = 4096
const timeUnitUs = 100

function parseOptions() {
  const { values } = parseArgs({
    options: {
      scenarios: { type: 'string' },
      runs: { type: 'string', default: '40' },
      seed: { type: 'string', default: '1' },
    },
  })
  const [runs, seed] = [Number(values.runs), Number(values.seed)]
  if (!Number.isSafeInteger(runs) || runs < 1) throw new TypeError('--runs takes a number from 1')
  if (!Number.isSafeInteger(seed)) throw new TypeError('--seed takes a number')
  const plans = makePlans({ runs, seed })
  const wanted = new Set(values.scenarios?.split(',') ?? plans.map(({ name }) => name))
  for (const name of wanted) {
    const plan = plans.find((plan) => plan.name === name)
    if (!plan) {
      const known = plans.map(({ name }) => name).join(', ')
      throw new TypeError(`there is no scenario ${name}: ${known}`)
    }
    const related = plan.child ?? plan.remade
    if (related) wanted.add(related.of)
  }
  return plans.filter(({ name }) => wanted.has(name))
}

/**
 * @param {Guest} guest
 * @param {Drawn} drawn
 * @param {any} expected
 * @param {{ socketPath: string, signal: AbortSignal }} options
 */
async function recordRun(guest, drawn, expected, { socketPath, signal }) {
  const backend = { socketPath, snapshot: { memoryFile: guest.memoryFile } }
  const handler = await serve({ ...backend, record: true })
  let vm
  try {
    vm = await guest.restore({ env: interposerEnvironment(backend), signal })
    await vm.resume()
    await ask(vm, drawn, expected)
    return handler.stopRecording()
  } finally {
    await vm?.stop()
    await handler.close()
  }
}

/** @param {string} memoryFile */
async function readPages(memoryFile) {
  const memory = await readFile(memoryFile)
  return (/** @type {number} */ page) => memory.subarray(page * pageSize, (page + 1) * pageSize)
}

/**
 * Number of pages that differ.
 * @param {Guest} one
 * @param {Guest} other
 */
async function differingPages(one, other) {
  const [a, b] = [await readPages(one.memoryFile), await readPages(other.memoryFile)]
  let count = 0
  for (let page = 0; page < one.memoryBytes / pageSize; page++) {
    if (!a(page).equals(b(page))) count++
  }
  return count
}

/**
 * The pages of `runs` whose content is in the memory of `other`, too. Pages of zeros are left out.
 * @param {Guest} guest
 * @param {readonly Run[]} runs
 * @param {Guest} other
 */
async function findCarried(guest, runs, other) {
  const [a, b] = [await readPages(guest.memoryFile), await readPages(other.memoryFile)]
  const placeOf = new Map()
  const digest = (/** @type {Buffer} */ page) => createHash('sha1').update(page).digest('base64')
  for (let page = other.memoryBytes / pageSize - 1; page >= 0; page--) {
    placeOf.set(digest(b(page)), page)
  }
  const zeros = Buffer.alloc(pageSize)
  const touched = [...new Set(runs.flatMap(({ pages }) => [...pages]))].sort((x, y) => x - y)
  const carried = touched.flatMap((page) => {
    if (a(page).equals(zeros)) return []
    const place = a(page).equals(b(page)) ? page : placeOf.get(digest(a(page)))
    return place === undefined ? [] : [{ page, place }]
  })
  return {
    pages: Uint32Array.from(carried, ({ page }) => page),
    places: Uint32Array.from(carried, ({ place }) => place),
  }
}

/**
 * Takes the snapshot of a child.
 * @param {Guest} parent
 * @param {import('./scenarios.mjs').Child} child
 * @param {{ folder: string, signal: AbortSignal }} options
 */
async function makeChild(parent, { of, before }, { folder, signal }) {
  const answers = await answersTo(parent.name, before)
  const use = async (/** @type {GuestVm} */ vm) => {
    for (const drawn of before) await ask(vm, drawn, answers.get(drawn))
  }
  const guest = await parent.snapshotAfter(folder, use, signal)
  const changedPages = await differingPages(parent, guest)
  return { guest, child: { of, invocations: before.length, changedPages } }
}

/**
 * @param {Guest} guest
 * @param {readonly Drawn[]} requests
 * @param {{ folder: string, signal: AbortSignal, onRun: (index: number) => void }} options
 */
async function recordRuns(guest, requests, { folder, signal, onRun }) {
  const answers = await answersTo(guest.name, requests)
  const runs = []
  for (const [index, drawn] of requests.entries()) {
    onRun(index)
    signal.throwIfAborted()
    const socketPath = join(folder, `${index}.sock`)
    const trace = await recordRun(guest, drawn, answers.get(drawn), { socketPath, signal })
    const { pages, timesUs, writtenShare = 0 } = trace
    const { variant, outlier } = drawn
    const written = Math.round(writtenShare * 1000) / 1000
    runs.push({ variant, ...(outlier && { outlier }), writtenShare: written, pages, timesUs })
  }
  return runs
}

/**
 * The snapshot of a scenario, and what is to be known of it.
 * @param {Plan} plan
 * @param {Guest | undefined} related  that of the scenario that it comes from, or is compared with
 * @param {{ folder: string, signal: AbortSignal }} options
 */
async function makeGuest({ function: name, child, remade }, related, { folder, signal }) {
  if (child && related) return makeChild(related, child, { folder, signal })
  const cache = remade && { cacheFolder: folder }
  const [guest] = await prepareGuests({ functions: [name], ...cache, signal })
  if (!guest) throw new Error(`no guest ${name}`)
  return { guest }
}

async function main() {
  const plans = parseOptions()
  const signal = abortOnInterrupt()
  const progress = new Progress(process.stderr)
  // Beside the snapshots: a child's memory is as large as theirs.
  const root = await mkdtemp(join(defaultCacheFolder, 'learning-'))
  try {
    const recorded = /** @type {Map<string, { guest: Guest, runs: Run[] }>} */ (new Map())
    for (const plan of plans) {
      const { requests, child: _, ...facts } = plan
      const folder = await mkdtemp(join(root, 'scenario-'))
      const related = recorded.get((plan.child ?? plan.remade)?.of ?? '')
      const { guest, ...made } = await makeGuest(plan, related?.guest, { folder, signal })
      const onRun = (/** @type {number} */ index) =>
        progress.say(`${plan.name}: run ${index + 1} of ${requests.length}`)
      const runs = await recordRuns(guest, requests, { folder, signal, onRun })
      recorded.set(plan.name, { guest, runs })
      const carried = plan.remade &&
        related && { carried: await findCarried(related.guest, related.runs, guest) }
      const { memoryBytes } = guest
      await writeScenario({
        ...{ ...facts, ...made, memoryBytes, pageSize, timeUnitUs },
        ...{ runs, ...carried },
      })
    }
  } finally {
    progress.end()
    await rm(root, { recursive: true, force: true })
  }
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${error instanceof Error ? error.message : error}\n`)
  process.exitCode = error instanceof TypeError ? 2 : 1
}
