// @ts-check
// Wait of a guest for a page of the page cache while the working set of another VM is installed, and
// without a prefetch. The guest sleeps between its faults: one that faults without end keeps its core.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { serve } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'
import { median } from '../../src/cli/measure/statistics.mjs'
import { root } from '../lib/machine.mjs'

const program = join(root, 'build/Release/reap-bench')
/** As long as most of a prefetch of 1 GiB. */
const FAULTS = 400
const PAUSE_US = 300
const PASSES = 5

/**
 * @type {{
 *   scene: import('./scene.mjs').Scene,
 *   large: import('./scene.mjs').Scene,
 *   folder: string,
 * }}
 */
const { scene, large, folder } = JSON.parse(process.argv[2] ?? '{}')

/** p99 of the faults of a guest without a working set, in microseconds. */
async function faults() {
  const { memoryFile } = scene
  const socketPath = join(folder, `${process.pid}-faults.sock`)
  // With recording, so that each fault brings one page only.
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
  try {
    const options = { socket: socketPath, memory: memoryFile, pages: FAULTS, 'pause-us': PAUSE_US }
    const words = Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`])
    const { stdout } = await promisify(execFile)(program, ['touch', ...words])
    return /** @type {number} */ (JSON.parse(stdout).p99Us)
  } finally {
    await handler.close()
  }
}

/** The same during a prefetch into a VM whose guest does not run. */
async function faultsBeside() {
  const { memoryFile, workingSet, trace } = large
  const socketPath = join(folder, `${process.pid}-prefetch.sock`)
  const handler = await serve({ socketPath, snapshot: { memoryFile }, workingSet })
  const pause = /** @type {const} */ (['connected'])
  const guest = new KvmGuest({ memoryFile, trace, socketPath, threads: true, pause: [...pause] })
  try {
    await handler.connected
    let isOver = false
    const prefetched = handler.prefetched.finally(() => {
      isOver = true
    })
    const p99Us = await faults()
    const wentOn = !isOver
    const { sinceConnectMs } = await prefetched
    return { p99Us, wentOn, prefetchMs: sinceConnectMs }
  } finally {
    await handler.close()
    await guest.kill()
  }
}

/** @type {{ alone: number, p99Us: number, wentOn: boolean, prefetchMs: number }[]} */
const passes = []
await faults()
for (let i = 0; i < PASSES; i++) passes.push({ alone: await faults(), ...(await faultsBeside()) })
// Faults that outlast the prefetch are partly alone.
const counted = passes.filter(({ wentOn }) => wentOn)
const sample = {
  aloneP99Us: median(counted.map(({ alone }) => alone)),
  besideP99Us: median(counted.map(({ p99Us }) => p99Us)),
  prefetchMs: median(passes.map(({ prefetchMs }) => prefetchMs)),
}
process.stdout.write(`${JSON.stringify(sample)}\n`)
