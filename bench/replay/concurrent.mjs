// @ts-check
// Many concurrent restores of one snapshot in one process: prefetch rate of the engine, and memory
// of a session. The guests do not run.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { serve } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'

/** @type {import('./sample.mjs').Request & { concurrent: number }} */
const { scene, folder, concurrent } = JSON.parse(process.argv[2] ?? '{}')
const { memoryFile, workingSet, trace } = scene

/** Private bytes of this process. */
const privateBytes = () =>
  [
    ...readFileSync('/proc/self/smaps_rollup', 'utf8').matchAll(/^Private_\w+:\s+(\d+) kB/gm),
  ].reduce((sum, [, kib]) => sum + Number(kib) * 1024, 0)

const socketOf = (/** @type {number} */ i) => join(folder, `concurrent-${i}.sock`)
const start = (/** @type {number} */ i) =>
  serve({ socketPath: socketOf(i), snapshot: { memoryFile }, workingSet, onBadWorkingSet: 'fail' })

/** Allocates the engine's bounded buffers by fetching before a VM connects. */
async function fillBuffers() {
  const ahead = await Promise.all(Array.from({ length: 4 }, (_, i) => start(i)))
  for (let before = -1, now = 0; now > before; ) {
    await sleep(100)
    before = now
    now = ahead.reduce((sum, handler) => sum + handler.stats().bytesRead, 0)
  }
  await Promise.all(ahead.map((handler) => handler.close()))
}

async function restoreAll() {
  const guests = Array.from(
    { length: concurrent },
    (_, i) =>
      new KvmGuest({
        memoryFile,
        trace,
        socketPath: socketOf(i),
        threads: true,
        pause: ['ready', 'connected'],
      }),
  )
  try {
    await Promise.all(guests.map((guest) => guest.event('ready')))
    globalThis.gc?.()
    const before = privateBytes()
    const startedAt = performance.now()
    const handlers = await Promise.all(Array.from({ length: concurrent }, (_, i) => start(i)))
    for (const guest of guests) guest.go()
    const prefetched = await Promise.all(handlers.map((handler) => handler.prefetched))
    const allMs = performance.now() - startedAt
    globalThis.gc?.()
    const sessionBytes = (privateBytes() - before) / concurrent
    const pages = prefetched.reduce((sum, { pageCount }) => sum + pageCount, 0)
    if (prefetched.some(({ source }) => source !== 'working-set')) {
      throw new Error('the bytes of a set came from the memory file')
    }
    await Promise.all(handlers.map((handler) => handler.close()))
    return { pages, allMs, pagesPerMs: pages / allMs, sessionBytes }
  } finally {
    await Promise.all(guests.map((guest) => guest.kill()))
  }
}

await fillBuffers()
// The first pass measures the memory of a session. In the second pass sessions and guest memory are
// allocated: to get memory from the machine's hypervisor costs more than to install pages in it.
const { sessionBytes } = await restoreAll()
process.stdout.write(`${JSON.stringify({ ...(await restoreAll()), sessionBytes })}\n`)
