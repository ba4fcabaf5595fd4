// @ts-check
// Concurrent restores of one snapshot, as on a platform: their VMMs start with them, and their
// guests compute between page touches.
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { prefetchPageCache, serve } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'
import { onOurClock } from '../lib/reap-handler.mjs'

/** Work after each page, about as long as a warm fault. */
const SPINS = 2000

/** @type {import('./sample.mjs').Request & { burst: number }} */
const { scene, warmUp, arm, folder, burst } = JSON.parse(process.argv[2] ?? '{}')

/** @type {KvmGuest[]} */
const guests = []

/**
 * One restore, from the request until the guest has finished.
 *
 * @param {import('./scene.mjs').Scene} scene
 * @param {number} i
 */
async function restored({ memoryFile, workingSet, trace }, i) {
  const socketPath = join(folder, `burst-${i}.sock`)
  // A guest that has finished waits until its prefetch is over, too.
  const options = { memoryFile, trace, threads: true, spins: SPINS, pause: ['done'] }
  const start = (/** @type {{ socketPath?: string }} */ more) => {
    const guest = new KvmGuest({ ...options, ...more })
    guests.push(guest)
    return guest.event('done')
  }
  if (arm !== 'working-set') {
    const prefetched =
      arm === 'page-cache' ? prefetchPageCache({ snapshot: { memoryFile }, workingSet }) : undefined
    const done = await start({})
    await prefetched
    return done
  }
  const handler = await serve({
    socketPath,
    snapshot: { memoryFile },
    workingSet,
    onBadWorkingSet: 'fail',
  })
  const done = await start({ socketPath })
  const { source } = await handler.prefetched
  await handler.close()
  if (source !== 'working-set') throw new Error(`the bytes of the set came from the ${source}`)
  return done
}

const all = (/** @type {import('./scene.mjs').Scene} */ scene) =>
  Promise.all(Array.from({ length: burst }, (_, i) => restored(scene, i)))

try {
  await all(warmUp)
  await Promise.all(guests.splice(0).map((guest) => guest.kill()))
  const startedAt = performance.now()
  const done = await all(scene)
  const sample = {
    responseMs: Math.max(...done.map(onOurClock)) - startedAt,
    wrong: done.reduce((sum, { wrong = 0 }) => sum + wrong, 0),
  }
  process.stdout.write(`${JSON.stringify(sample)}\n`)
} finally {
  await Promise.all(guests.map((guest) => guest.kill()))
}
