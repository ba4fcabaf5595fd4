// @ts-check
// What a set that learns from every restore saves, over sets made by simple rules.
//
//   npm run bench:learning [-- --fault-us 13 --scenarios nodejs,pyaes --curve --json]
//
// Replays recorded runs of guests (traces/) through the store's learner, which sees of each restore
// what a fault handler sees. Nothing is restored: stalls are modelled. bench/README.md defines the
// figures.
import { parseArgs } from 'node:util'
import { figure } from '../lib/figures.mjs'
import { abortOnInterrupt } from '../lib/interrupt.mjs'
import { Progress } from '../lib/progress.mjs'
import { loadLearner } from './load-learner.mjs'
import { mean, Replay } from './replay.mjs'
import { ratiosOf, tableOf } from './report.mjs'
import { scenarioNames } from './traces.mjs'

const usage = `usage: npm run bench:learning -- [options]

  --fault-us N        stall of a fault in microseconds (50)
  --install-us N      stall of an installed page (1.2)
  --memory-price N    what a page of a set costs the learner beyond its install (0)
  --write-ms N        what a rewritten set costs: its milliseconds by their weight, since it is
                      written in the background (5, for 20 ms at a quarter)
  --scenarios A,B     only these, and the parents of those that are children
  --seeds N           draws of the pages that are held out; figures are their means (3)
  --curve             stall and waste against the memory's price
  --json              one object on stdout
`

/** Prices of the curve, in microseconds. */
const prices = [0, 0.5, 1, 2, 4, 8, 16]

function parseOptions() {
  const { values } = parseArgs({
    options: {
      'fault-us': { type: 'string', default: '50' },
      'install-us': { type: 'string', default: '1.2' },
      'memory-price': { type: 'string', default: '0' },
      'write-ms': { type: 'string', default: '5' },
      scenarios: { type: 'string' },
      seeds: { type: 'string', default: '3' },
      curve: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const number = (/** @type {'fault-us' | 'install-us' | 'memory-price' | 'write-ms'} */ name) => {
    const value = Number(values[name])
    if (values[name].trim() === '' || !(value >= 0 && value < Number.POSITIVE_INFINITY)) {
      throw new TypeError(`--${name} takes a number from 0`)
    }
    return value
  }
  const seeds = Number(values.seeds)
  if (!Number.isSafeInteger(seeds) || seeds < 1) {
    throw new TypeError('--seeds takes a whole number from 1')
  }
  const known = scenarioNames()
  const names = values.scenarios?.split(',') ?? known
  const unknown = names.filter((name) => !known.includes(name))
  if (unknown.length > 0) {
    throw new TypeError(`--scenarios has no ${unknown.join(', ')}; there are ${known.join(', ')}`)
  }
  const costs = {
    faultUs: number('fault-us'),
    installUs: number('install-us'),
    memoryPrice: number('memory-price'),
    writeUs: 1000 * number('write-ms'),
  }
  return { ...values, seeds, names, costs }
}

/** @typedef {ReturnType<typeof parseOptions>} Options */

/**
 * @param {Options} options
 * @param {import('./replay.mjs').Costs} costs
 * @param {(share: number, name: string) => void} onProgress
 * @param {AbortSignal} signal
 */
async function replayAll({ names, seeds }, costs, onProgress, signal) {
  const Learner = await loadLearner()
  const all = []
  for (let seed = 1; seed <= seeds; seed++) {
    const replay = new Replay(Learner, costs, seed)
    const results = []
    for (const name of names) {
      signal.throwIfAborted()
      const done = ((seed - 1) * names.length + results.length) / (seeds * names.length)
      onProgress(done, name)
      results.push(await replay.scenario(name))
      // For an interrupt: a replay never waits.
      await new Promise((resolve) => setImmediate(resolve))
    }
    all.push(results)
  }
  return all
}

/**
 * @param {Options} options
 * @param {Progress} progress
 * @param {AbortSignal} signal
 */
async function run(options, progress, signal) {
  const { costs } = options
  const seeds = await replayAll(options, costs, (share, name) => progress.say(name, share), signal)
  const curve = []
  for (const [i, memoryPrice] of (options.curve ? prices : []).entries()) {
    const say = (/** @type {number} */ share) =>
      progress.say(`a memory price of ${memoryPrice} µs`, (i + share) / prices.length)
    const priced = (await replayAll(options, { ...costs, memoryPrice }, say, signal)).flat()
    const of = (/** @type {'laterMs' | 'missed' | 'wasted'} */ what) =>
      mean(priced.map(({ outcomes }) => outcomes.learned?.[what] ?? 0))
    curve.push({ memoryPrice, stallMs: of('laterMs'), missed: of('missed'), wasted: of('wasted') })
  }
  return { costs, ratios: ratiosOf(seeds), seeds, ...(options.curve && { curve }) }
}

/** @param {Awaited<ReturnType<typeof run>>} report */
function print({ costs, ratios, seeds, curve }) {
  const { faultUs, installUs, memoryPrice } = costs
  const price = memoryPrice > 0 ? `, with memory ${installUs + memoryPrice} µs to the learner` : ''
  const lines = [
    `a fault ${faultUs} µs, an install ${installUs} µs${price}`,
    '',
    ...tableOf(seeds),
    '',
  ]
  for (const [name, { value, bound, target, met }] of Object.entries(ratios)) {
    const aim = bound ? `  ${bound} ${target}${met ? '' : '   missed'}` : ''
    lines.push(`${name.padEnd(28)}${figure(value, 3).padStart(10)}${aim}`)
  }
  if (curve) {
    lines.push(
      '',
      `${'memory price'.padEnd(28)}${'stall in ms'.padStart(13)}   missed   wasted pages`,
    )
    for (const { memoryPrice, stallMs, missed, wasted } of curve) {
      const figures = `${figure(stallMs, 2).padStart(13)}${figure(missed, 0).padStart(9)}${figure(wasted, 0).padStart(9)}`
      lines.push(`${`${memoryPrice} µs`.padEnd(28)}${figures}`)
    }
  }
  process.stdout.write(`${lines.join('\n')}\n`)
}

/** @type {AbortSignal | undefined} */
let interrupted

async function main() {
  const options = parseOptions()
  if (options.help) {
    process.stdout.write(usage)
    return
  }
  interrupted = abortOnInterrupt()
  const progress = new Progress(process.stderr)
  try {
    const report = await run(options, progress, interrupted)
    progress.end()
    if (!options.json) print(report)
    else process.stdout.write(`${JSON.stringify({ ...report, seeds: report.seeds.length })}\n`)
  } finally {
    progress.end()
  }
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${/** @type {Error} */ (error).message}\n`)
  process.exitCode = interrupted?.aborted ? 130 : error instanceof TypeError ? 2 : 1
}
