// @ts-check
// What a store costs a process:
//
//   npm run build && node bench/learning/overhead.mjs [--rounds 200] [--seconds 10] [--json]
//
// First, sessions for a set of 10 MiB are opened in turns by planRestore() and restore(), and by a
// store. Then VMs are restored at 20 a second, in turns by a store that learns and by one that only
// reads: the difference of the CPU time of this process is that of learning.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { openStore, planRestore, restore } from '../../dist/index.js'
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { abortOnInterrupt } from '../lib/interrupt.mjs'
import { Progress } from '../lib/progress.mjs'

/** @typedef {import('../../dist/index.js').Store} Store */

const memoryBytes = 64 * 2 ** 20
const setPages = 2560
/** Pages of a restore that no set has, and that it lacks of the set. */
const changingPages = 32
const restoresPerSecond = 20

const guestPath = fileURLToPath(new URL('../../build/Release/reap-guest', import.meta.url))

/** A small VMM that takes one command after another. */
class Vmm {
  #child = spawn(guestPath, ['vmm'], { stdio: ['pipe', 'pipe', 'inherit'] })
  #answers = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()

  static async start() {
    const vmm = new Vmm()
    await vmm.#answer('start')
    return vmm
  }

  async run(/** @type {string} */ command) {
    this.#child.stdin.write(`${command}\n`)
    await this.#answer(command)
  }

  async #answer(/** @type {string} */ command) {
    const { value } = await this.#answers.next()
    if (!value || !JSON.parse(value).ok) throw new Error(`${command}: ${value}`)
  }

  async stop() {
    const exited = once(this.#child, 'exit')
    this.#child.kill()
    await exited
  }
}

function parseOptions() {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '200' },
      seconds: { type: 'string', default: '10' },
      json: { type: 'boolean', default: false },
    },
  })
  const [rounds, seconds] = [Number(values.rounds), Number(values.seconds)]
  if (!Number.isSafeInteger(rounds) || rounds < 1) throw new TypeError('--rounds takes a number')
  if (!(seconds > 0)) throw new TypeError('--seconds takes a number')
  return { rounds, seconds, json: values.json }
}

/** @param {readonly number[]} values */
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN

async function main() {
  const { rounds, seconds, json } = parseOptions()
  const signal = abortOnInterrupt()
  const progress = new Progress(process.stderr)
  const folder = await mkdtemp(join(tmpdir(), 'reap-overhead-'))
  const vmm = await Vmm.start()
  try {
    const memoryFile = join(folder, 'memory')
    await writeFile(memoryFile, Buffer.alloc(memoryBytes, 1))
    const snapshot = { memoryFile }
    const socketPath = join(folder, 'socket')
    const random = randomNumbers(1)
    const pagesOf = () => {
      const pages = Array.from({ length: setPages }, (_, i) => 6 * i)
      for (let i = 0; i < changingPages; i++) {
        pages[Math.floor(random() * setPages)] = Math.floor(random() * (memoryBytes / 4096))
      }
      return pages.join(' ')
    }
    const once = async (/** @type {Store} */ store) => {
      signal.throwIfAborted()
      await vmm.run(`map 4096 ${memoryBytes}`)
      const restored = await store.restore({ snapshot, socketPath, backend: 'uffd' })
      await vmm.run(`handshake ${socketPath}`)
      await vmm.run(`read ${pagesOf()}`)
      await restored.ready()
      await restored.close({ vm: 'leave' })
      await vmm.run('drop')
      return restored
    }
    const store = await openStore(join(folder, 'store'))
    for (let i = 0; i < 20; i++) await (await once(store)).learned
    const known = await store.describe(snapshot)
    const workingSet = known?.sets[0]?.path
    if (!workingSet) throw new Error('the store has no set')

    const arms = /** @type {const} */ (['plain', 'store'])
    /** @type {Record<'plain' | 'store', number[]>} */
    const openedMs = { plain: [], store: [] }
    for (let round = 0; round < rounds; round++) {
      signal.throwIfAborted()
      for (const arm of round % 2 ? arms.toReversed() : arms) {
        const startedAt = performance.now()
        const opened =
          arm === 'store'
            ? await store.restore({ snapshot, socketPath, backend: 'uffd' })
            : await restore(
                await planRestore({ snapshot, workingSet, backend: 'uffd', record: true }),
                { socketPath },
              )
        openedMs[arm].push(performance.now() - startedAt)
        await opened.close()
      }
    }
    const addedMs = median(openedMs.store.map((ms, i) => ms - (openedMs.plain[i] ?? 0)))

    const reader = await openStore(join(folder, 'store'), { readOnly: true })
    const cpuMsIn = async (/** @type {Store} */ each) => {
      const before = process.cpuUsage()
      const end = performance.now() + 1000
      for (let i = 0; i < restoresPerSecond; i++) {
        const next = end - 1000 + ((i + 1) * 1000) / restoresPerSecond
        await once(each)
        await sleep(Math.max(0, next - performance.now()))
      }
      const { user, system } = process.cpuUsage(before)
      return (user + system) / 1000
    }
    /** @type {number[]} */
    const differences = []
    for (let second = 0; second < seconds; second++) {
      progress.say(`learning from ${restoresPerSecond} restores a second`, second / seconds)
      const first = second % 2 ? reader : store
      const [a, b] = [await cpuMsIn(first), await cpuMsIn(first === store ? reader : store)]
      differences.push(first === store ? a - b : b - a)
    }
    await store.settled()
    // A mean, since lessons are learned in batches: most of them fall into few seconds.
    const coreShare = differences.reduce((sum, ms) => sum + ms, 0) / differences.length / 1000
    progress.end()
    const ratios = { storeAddedMs: { value: addedMs }, learningCoreShare: { value: coreShare } }
    process.stdout.write(
      json
        ? `${JSON.stringify({ ratios })}\n`
        : `a store adds ${addedMs.toFixed(3)} ms to restore() (median of ${rounds}); learning from ${restoresPerSecond} restores a second takes ${(100 * coreShare).toFixed(2)} % of a core (mean of ${seconds} pairs of a second)\n`,
    )
  } finally {
    progress.end()
    await vmm.stop()
    await rm(folder, { recursive: true, force: true })
  }
}

try {
  await main()
} catch (error) {
  process.stderr.write(`error: ${error instanceof Error ? error.message : error}\n`)
  process.exitCode = error instanceof TypeError ? 2 : 1
}
