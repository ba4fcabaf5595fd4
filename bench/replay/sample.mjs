// @ts-check
// One restore of a replayed guest, in a separate process: scene and arm are JSON in the argument,
// the sample goes to stdout. Times are milliseconds from the restore request, when the VMM runs and
// waits for its snapshot, as in a pool.
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { planRestore, prefetchPageCache, restore, serve, WorkingSet } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'
import { PageCache } from '../../native/guest/driver/page-cache.mjs'
import { onOurClock, ReapHandler } from '../lib/reap-handler.mjs'
import { Warnings } from '../lib/warnings.mjs'

/**
 * @typedef {'kernel-file' | 'page-cache' | 'auto' | 'on-demand' | 'record' | 'reap' | 'reap-cached' | 'working-set' | 'unproven'} Arm
 *
 * @typedef {object} Request
 * @property {import('./scene.mjs').Scene} scene
 * @property {import('./scene.mjs').Scene} warmUp another one
 * @property {Arm} arm
 * @property {string} folder for sockets
 * @property {'cold' | 'half-warm' | 'warm'} cache
 * @property {'kvm' | 'process'} guest
 * @property {boolean} [paused] the guest does not run before its working set is installed
 * @property {boolean} [busy] the JavaScript thread is blocked for a second from the request on
 */

/** Number of restores after which further ones are no faster; those without a handler are short. */
const WARM_UPS = 8
const CHOICES = 60
const COLD_CHOICES = 8
const WARM_UP_GUESTS = 2

/** @type {Request} */
const request = JSON.parse(process.argv[2] ?? '{}')
const { scene, arm, guest, folder, paused = false, busy = false } = request
const socketPath = join(folder, `${process.pid}.sock`)
const { memoryFile } = scene

const vm = new KvmGuest({
  memoryFile,
  trace: scene.trace,
  // Alive until everything is counted: the guest may finish before the last page of its set is
  // installed.
  pause: paused ? ['ready', 'connected', 'done'] : ['ready', 'done'],
  // A VMM learns its backend from the request; arms with two backends decide then.
  ...(!['kernel-file', 'page-cache', 'auto'].includes(arm) && { socketPath }),
  ...(guest === 'process' && { threads: true }),
})
await vm.event('ready')

/**
 * @param {import('./scene.mjs').Scene} scene
 * @param {Partial<import('../../dist/index.js').PlanRestoreOptions>} wishes
 * @param {import('../../dist/index.js').RestoreOptions} [options]
 */
const prepare = async ({ memoryFile, workingSet }, wishes, options) => {
  const plan = await planRestore({ snapshot: { memoryFile }, workingSet, ...wishes })
  return restore(plan, { socketPath, ...options })
}

/**
 * An orchestrator has restored other snapshots before: its code is compiled, and the engine's
 * threads and buffers are allocated.
 */
async function warmUp() {
  const { memoryFile, trace, workingSet } = request.warmUp
  for (let i = 0; i < WARM_UPS; i++) {
    // A long-running service knows a file that it has read before, but not one of another snapshot.
    await WorkingSet.read(workingSet)
    const handler = await serve({ socketPath, snapshot: { memoryFile }, workingSet })
    if (i < WARM_UP_GUESTS) {
      const other = new KvmGuest({ memoryFile, trace, socketPath, threads: true, pause: ['done'] })
      await other.event('done')
      await handler.prefetched
      await other.kill()
    }
    await handler.close()
    for (const backend of /** @type {const} */ (['uffd', 'page-cache'])) {
      await (await prepare(request.warmUp, { backend })).close()
    }
    await prefetchPageCache({ snapshot: { memoryFile }, workingSet })
  }
  // A service has also chosen for cold sets before, so the pool thread exists.
  const cache = await PageCache.open()
  for (let i = 0; i < COLD_CHOICES; i++) {
    await cache.set('cold', [workingSet])
    await (await prepare(request.warmUp, { vcpus: 'threads' })).close()
  }
  await cache.set('warm', [workingSet])
  await cache.close()
  for (let i = 0; i < CHOICES; i++) {
    await (await prepare(request.warmUp, { vcpus: 'threads' })).close()
  }
}

const options = {
  'on-demand': { record: false },
  record: { record: true },
  'working-set': { workingSet: scene.workingSet, onBadWorkingSet: /** @type {const} */ ('fail') },
  unproven: {
    workingSet: scene.workingSet,
    onBadWorkingSet: /** @type {const} */ ('fail'),
    onStaleWorkingSet: /** @type {const} */ ('warn'),
  },
}
/** Expected source of a prefetch's bytes. */
/** @type {Partial<Record<Arm, string>>} */
const sources = { 'working-set': 'working-set', unproven: 'memory-file' }
/** A host without findings about this scene, but with those of the warm-up. */
const noProofs = arm === 'unproven' ? await mkdtemp(join(folder, 'proofs-')) : undefined

async function run() {
  // For all arms alike: it changes the state of the caches and the cores.
  await warmUp()
  if (noProofs) process.env.REAP_TRACE_PROOFS = noProofs
  if (arm === 'reap' || arm === 'reap-cached') {
    const handler = await ReapHandler.start({
      ...scene,
      socketPath,
      pages: scene.reapPages,
      fetch: arm === 'reap' ? 'direct' : 'cached',
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
  const startedAt = performance.now()
  if (arm === 'kernel-file') {
    vm.go()
    return { startedAt, done: await vm.event('done') }
  }
  if (arm === 'page-cache') {
    const prefetched = prefetchPageCache({ snapshot: { memoryFile }, workingSet: scene.workingSet })
    vm.go()
    const done = await vm.event('done')
    const { residentPageCount, extentCount, completedMs } = await prefetched
    return { startedAt, done, residentPageCount, extentCount, completedMs }
  }
  if (arm === 'auto') {
    const vcpus = guest === 'kvm' ? 'kvm' : 'threads'
    // Not 'fail', which makes a restore wait for a check that is unnecessary for the page cache.
    const warnings = new Warnings()
    const restored = await prepare(scene, { vcpus }, warnings)
    const prepareMs = performance.now() - startedAt
    vm.go(restored.backend === 'uffd' ? `socket ${socketPath}` : 'file')
    const done = await vm.event('done')
    warnings.expectComplete(await restored.prefetched)
    await restored.close()
    return {
      startedAt,
      done,
      prepareMs,
      decidedMs: restored.plan.decidedMs,
      choseUffd: restored.backend === 'uffd' ? 1 : 0,
    }
  }
  const handler = await serve({ socketPath, snapshot: { memoryFile }, ...options[arm] })
  const serveMs = performance.now() - startedAt
  vm.go()
  if (busy) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1000)
  if (paused) {
    await vm.event('connected')
    await handler.prefetched
    vm.go()
  }
  const done = await vm.event('done')
  const { fetchMs, installMs, sinceConnectMs, pageCount, source } = await handler.prefetched
  if (source !== sources[arm]) throw new Error(`the bytes of the set came from the ${source}`)
  const { faults, lateFaults, residualFaults } = handler.stats()
  await handler.close()
  const compared = await handler.compared
  if (noProofs && !compared?.identical)
    throw new Error('the set was not found to be the memory file’s')
  return {
    startedAt,
    done,
    serveMs,
    fetchMs,
    installMs,
    sinceConnectMs,
    prefetched: pageCount,
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
  if (noProofs) await rm(noProofs, { recursive: true, force: true })
}
