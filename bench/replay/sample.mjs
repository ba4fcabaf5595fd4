// @ts-check
// One restore of a replayed guest, in a process of its own: the scene and the arm come as JSON in the
// argument, the sample goes to stdout. Times are milliseconds from the restore request, which finds
// the VMM started and waiting for its snapshot, as pooled ones are.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { serve, Trace, WorkingSet } from '../../dist/index.js'
import { KvmGuest } from '../../test/kvm-guest.mjs'
import { onOurClock, ReapHandler } from '../lib/reap-handler.mjs'

/**
 * @typedef {'kernel-file' | 'on-demand' | 'record' | 'reap' | 'working-set'} Arm
 *
 * @typedef {object} Request
 * @property {import('./scene.mjs').Scene} scene
 * @property {Arm} arm
 * @property {string} folder for sockets
 * @property {'cold' | 'warm'} cache
 * @property {'kvm' | 'process'} guest
 * @property {boolean} [paused] the guest does not run before its working set is there
 * @property {boolean} [busy] the JavaScript thread is blocked for a second from the request on
 * @property {number} [vcpus]
 */

/** @type {Request} */
const request = JSON.parse(process.argv[2] ?? '{}')
const { scene, arm, guest, cache, folder, paused = false, busy = false, vcpus = 1 } = request
const socketPath = join(folder, `${process.pid}.sock`)
const { memoryFile } = scene

const vm = new KvmGuest({
  memoryFile,
  trace: scene.trace,
  vcpus,
  // Alive until all is counted: the guest may be through before the last page of its set is there.
  pause: paused ? ['ready', 'connected', 'done'] : ['ready', 'done'],
  ...(arm !== 'kernel-file' && { socketPath }),
  ...(guest === 'process' && { threads: true }),
})
await vm.event('ready')

/** An orchestrator has served before: its code is compiled and the engine's threads are there. */
async function warmUp() {
  const small = join(folder, `${process.pid}.memory`)
  const set = join(folder, `${process.pid}.working-set`)
  await writeFile(small, Buffer.alloc(16 * 4096, 1))
  const pages = Uint32Array.from({ length: 16 }, (_, i) => i)
  const trace = new Trace({ pageSize: 4096, memoryBytes: 16 * 4096, pages, timesUs: pages })
  await WorkingSet.fromTraces([trace]).write(set, { memoryFile: small })
  for (let i = 0; i < 5; i++) {
    await (await serve({ socketPath, memoryFile: small, workingSet: set })).close()
  }
}

const options = {
  'on-demand': { record: false },
  record: { record: true },
  'working-set': { workingSet: scene.workingSet, onBadWorkingSet: /** @type {const} */ ('fail') },
}

async function run() {
  if (arm === 'reap') {
    const handler = await ReapHandler.start({
      ...scene,
      socketPath,
      pages: scene.reapPages,
      fetch: cache === 'warm' ? 'cached' : 'direct',
    })
    const startedAt = handler.listeningAt
    await handler.fetched
    vm.go()
    const done = await vm.event('done')
    const { installedAt, installMs, faults } = await handler.end()
    return {
      startedAt,
      done,
      installMs,
      prefetchedMs: installedAt - startedAt,
      residualFaults: faults,
      faults,
    }
  }
  if (arm !== 'kernel-file') await warmUp()
  const startedAt = performance.now()
  if (arm === 'kernel-file') {
    vm.go()
    return { startedAt, done: await vm.event('done') }
  }
  const handler = await serve({ socketPath, memoryFile, ...options[arm] })
  vm.go()
  if (busy) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)
  if (paused) {
    await vm.event('connected')
    await handler.prefetched
    vm.go()
  }
  const done = await vm.event('done')
  const { fetchMs, installMs, sinceConnectMs, pages } = await handler.prefetched
  const { faults, lateFaults, residualFaults } = handler.stats()
  await handler.close()
  return {
    startedAt,
    done,
    fetchMs,
    installMs,
    sinceConnectMs,
    prefetched: pages,
    faults,
    lateFaults,
    residualFaults,
  }
}

try {
  const { startedAt, done, ...rest } = await run()
  const sample = { responseMs: onOurClock(done) - startedAt, wrong: done.wrong, ...rest }
  process.stdout.write(`${JSON.stringify(sample)}\n`)
} finally {
  await vm.kill()
}
