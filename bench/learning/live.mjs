// @ts-check
// Restores real Linux guests (native/guest/linux) through a store that learns:
//
//   npm run build && node bench/learning/live.mjs [--functions pyaes,nodejs] [--restores 30] [--json]
//
// Each function is restored with one request over and over, then, in a new store, with requests that
// are drawn. Every answer is checked. Needs what bench:guests needs.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { interposerEnvironment, openStore } from '../../dist/index.js'
import { prepareGuests } from '../../native/guest/linux/index.mjs'
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { abortOnInterrupt } from '../lib/interrupt.mjs'
import { Progress } from '../lib/progress.mjs'
import { answersTo, ask } from './answers.mjs'
import { usual } from './inputs.mjs'

/** @typedef {import('../../native/guest/linux/guest.mjs').Guest} Guest */
/** @typedef {import('./inputs.mjs').Drawn} Drawn */
/** @typedef {import('../../dist/index.js').Store} Store */
/** @typedef {import('../../dist/index.js').HistoryLine} HistoryLine */

const last = 10

function parseOptions() {
  const { values } = parseArgs({
    options: {
      functions: { type: 'string', default: 'pyaes,json_serdes,nodejs' },
      restores: { type: 'string', default: '30' },
      seed: { type: 'string', default: '1' },
      json: { type: 'boolean', default: false },
    },
  })
  const [restores, seed] = [Number(values.restores), Number(values.seed)]
  if (!Number.isSafeInteger(restores) || restores < 3) {
    throw new TypeError('--restores takes a number from 3')
  }
  if (!Number.isSafeInteger(seed)) throw new TypeError('--seed takes a number')
  const functions = values.functions.split(',')
  for (const name of functions) {
    if (name in usual) continue
    throw new TypeError(`there is no function ${name}: ${Object.keys(usual).join(', ')}`)
  }
  return { functions, restores, seed, json: values.json }
}

/**
 * One restore, until its evidence is saved.
 * @param {Store} store
 * @param {Guest} guest
 * @param {Drawn} drawn
 * @param {any} expected
 * @param {{ socketPath: string, signal: AbortSignal }} options
 */
async function restore(store, guest, drawn, expected, { socketPath, signal }) {
  const snapshot = { memoryFile: guest.memoryFile }
  const restored = await store.restore({
    snapshot,
    socketPath,
    variant: drawn.variant,
    backend: 'uffd',
    vcpus: 'threads',
    signal,
  })
  let vm
  try {
    vm = await guest.restore({ env: interposerEnvironment({ socketPath, snapshot }), signal })
    await vm.resume()
    await ask(vm, drawn, expected)
    await restored.ready()
    await restored.learned
  } finally {
    await vm?.stop()
    await restored.close()
  }
}

/**
 * Residual faults as a share of the pages that were prefetched or missed.
 * @param {readonly HistoryLine[]} lines
 */
function residualShare(lines) {
  const sum = (/** @type {(line: HistoryLine) => number | undefined} */ of) =>
    lines.reduce((total, line) => total + (of(line) ?? 0), 0)
  const residual = sum(({ residualFaults }) => residualFaults)
  return residual / (sum(({ prefetchedPageCount }) => prefetchedPageCount) + residual)
}

/**
 * @param {Guest} guest
 * @param {readonly Drawn[]} requests
 * @param {{ folder: string, signal: AbortSignal, onRestore: (index: number) => void }} options
 */
async function learn(guest, requests, { folder, signal, onRestore }) {
  const store = await openStore(join(folder, 'store'))
  const answers = await answersTo(guest.name, requests)
  for (const [index, drawn] of requests.entries()) {
    onRestore(index)
    const socketPath = join(folder, `${index}.sock`)
    await restore(store, guest, drawn, answers.get(drawn), { socketPath, signal })
  }
  const known = await store.describe({ memoryFile: guest.memoryFile })
  if (!known || known.history.length !== requests.length) throw new Error('a restore is missing')
  const prefetched = known.history.filter(({ recorded }) => !recorded)
  return {
    // The first set is that of one recording.
    first: residualShare(prefetched.slice(0, 1)),
    last: residualShare(prefetched.slice(-last)),
    sets: known.sets.length,
    pages: known.sets.find(({ variant }) => variant === undefined)?.pageCount ?? 0,
  }
}

async function main() {
  const { functions, restores, seed, json } = parseOptions()
  const signal = abortOnInterrupt()
  const progress = new Progress(process.stderr)
  const root = await mkdtemp(join(tmpdir(), 'reap-learning-'))
  const percent = (/** @type {number} */ share) => `${(100 * share).toFixed(2)} %`.padStart(8)
  /** @type {Record<string, { value: number }>} */
  const ratios = {}
  try {
    for (const name of functions) {
      const [guest] = await prepareGuests({ functions: [name], signal })
      if (!guest) throw new Error(`no guest ${name}`)
      const random = randomNumbers(seed)
      const draw = () => /** @type {import('./inputs.mjs').Distribution} */ (usual[name])(random)
      const same = draw()
      const inputs = {
        same: Array.from({ length: restores }, () => ({ ...same })),
        changing: Array.from({ length: restores }, draw),
      }
      for (const [kind, requests] of Object.entries(inputs)) {
        const folder = await mkdtemp(join(root, `${kind}-`))
        const onRestore = (/** @type {number} */ index) =>
          progress.say(`${name}, ${kind} input: restore ${index + 1} of ${restores}`)
        const shares = await learn(guest, requests, { folder, signal, onRestore })
        ratios[`${name}.${kind}.first`] = { value: shares.first }
        ratios[`${name}.${kind}.last`] = { value: shares.last }
        const text = `${name.padEnd(12)} ${kind.padEnd(8)} input: residual share ${percent(shares.first)} with the first set, ${percent(shares.last)} in the last ${last}; ${shares.sets} sets, the common one of ${shares.pages} pages`
        if (json) progress.say(text)
        else progress.note(text)
      }
    }
    progress.end()
    if (json) process.stdout.write(`${JSON.stringify({ ratios })}\n`)
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
