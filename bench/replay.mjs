// @ts-check
// How near a restore comes to what the machine can do at best, and how far it is from the others.
//
//   npm run bench [-- --rounds 15 --only linux --quick --json]
//
// A guest replays a trace (bench/replay): arms in turns, one process a sample, with a warm and a cold
// page cache. Beside them stand limits (bench/native), which do nothing but the system calls.
// --json prints one object with every sample and `ratios`; bench/README.md says what each means.
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { describeMachine, root } from './lib/machine.mjs'
import { PageCache } from './lib/page-cache.mjs'
import { Progress } from './lib/progress.mjs'
import { cells, scenes } from './replay/cells.mjs'
import { limitsOf } from './replay/limits.mjs'
import { makeReport, printReport } from './replay/report.mjs'
import { takeSample } from './replay/run.mjs'
import { filesOf, prepareScene } from './replay/scene.mjs'

const usage = `usage: npm run bench -- [options]

  --rounds N    samples of each kind (15; with --quick 3)
  --only TEXT   cells with that in their name, such as linux-64 or kvm
  --quick       few rounds, and no working set above 64 MiB
  --list        print the names of the cells, and do nothing
  --cache DIR   where memory files are kept between runs (build/scenes; some GiB)
  --json        one object with every sample on stdout
`

function parseOptions() {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string' },
      only: { type: 'string', default: '' },
      quick: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
      cache: { type: 'string', default: join(root, 'build/scenes') },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const rounds = Number(values.rounds ?? (values.quick ? 3 : 15))
  if (!Number.isSafeInteger(rounds) || rounds < 1) {
    throw new TypeError('--rounds takes a whole number from 1')
  }
  return { ...values, rounds }
}

async function main() {
  const options = parseOptions()
  const wanted = cells.filter(
    ({ name, large }) => name.includes(options.only) && !(options.quick && large),
  )
  if (options.help || options.list) {
    process.stdout.write(options.help ? usage : `${wanted.map(({ name }) => name).join('\n')}\n`)
    return
  }
  const interrupt = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM']) {
    process.once(name, () => interrupt.abort(new Error(`ended by ${name}`)))
  }
  const { signal } = interrupt
  const progress = new Progress(process.stderr)
  await mkdir(options.cache, { recursive: true })
  const folder = await mkdtemp(join(options.cache, 'run-'))
  const cache = await PageCache.open()
  try {
    /** @type {Map<string, import('./replay/scene.mjs').Scene>} */
    const prepared = new Map()
    for (const name of new Set(wanted.map((cell) => cell.scene))) {
      progress.say(`making ${name}`)
      const scene = scenes.get(name)
      if (!scene) throw new Error(`no scene ${name}`)
      prepared.set(name, await prepareScene(scene, options.cache))
    }
    const sceneOf = (/** @type {string} */ name) =>
      /** @type {import('./replay/scene.mjs').Scene} */ (prepared.get(name))

    const samples = /** @type {import('./replay/report.mjs').Sample[]} */ ([])
    for (let round = 0; round < options.rounds; round++) {
      // Each cell has its turn to come after each other one.
      for (let i = 0; i < wanted.length; i++) {
        const cell = /** @type {typeof cells[number]} */ (wanted[(i + round) % wanted.length])
        signal.throwIfAborted()
        progress.say(
          `${cell.name}, round ${round + 1}`,
          (round + i / wanted.length) / options.rounds,
        )
        const scene = sceneOf(cell.scene)
        await cache.set(cell.cache, filesOf(scene))
        samples.push({ cell: cell.name, round, ...(await takeSample(cell, scene, folder, signal)) })
      }
    }
    progress.say('limits')
    const limits = await limitsOf([...prepared.values()], { cache, folder, signal })
    progress.end()
    const machine = { ...describeMachine(options.cache), rounds: options.rounds }
    const report = makeReport({ machine, scenes: [...prepared.values()], samples, limits })
    if (options.json) process.stdout.write(`${JSON.stringify(report)}\n`)
    else printReport(report, process.stdout)
  } finally {
    progress.end()
    await cache.close()
    await rm(folder, { recursive: true, force: true })
  }
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${/** @type {Error} */ (error).message}\n`)
  process.exitCode = error instanceof TypeError ? 2 : 1
}
