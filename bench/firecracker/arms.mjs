// @ts-check
// One restore with each arm. An arm's work before it returns is outside of the measured time,
// `load` is inside.
import * as current from '../../dist/index.js'
import { PlainHandler, ReapHandler } from '../lib/reap-handler.mjs'
import { Warnings } from '../lib/warnings.mjs'

/**
 * @typedef {object} Place of one restore
 * @property {import('../../native/guest/driver/microvm.mjs').MicroVm} vm
 * @property {import('./scene.mjs').Scene} scene
 * @property {string} socketPath
 * @property {'cold' | 'warm'} cache
 * @property {AbortSignal} signal
 * @property {typeof import('../../dist/index.js')} [before] another build
 *
 * @typedef {object} Counts
 * @property {number} [faults]
 * @property {number} [lateFaults]
 * @property {number} [residualFaults]
 * @property {string} [choice]
 *
 * @typedef {object} Restore
 * @property {() => Promise<void>} load until Firecracker has loaded the snapshot, and the guest runs
 * @property {() => Promise<void>} [settled] work that continues after the guest has answered
 * @property {() => Promise<Counts> | Counts} counts called once, at the end
 * @property {() => Promise<unknown>} end
 * @property {number} [pid] of an additional process, other than Firecracker and this one
 */

/** @param {Place} place */
const loadFile = ({ vm, scene: { vmstate, memoryFile } }) => vm.load({ vmstate, memoryFile })

/** @param {Place} place */
const loadUffd = ({ vm, scene: { vmstate }, socketPath }, resume = true) =>
  vm.load({ vmstate, uffdSocket: socketPath, resume })

/** @param {Place} place @returns {Restore} */
const file = (place) => ({
  load: () => loadFile(place),
  counts: () => ({}),
  end: async () => {},
})

/** @param {Place} place @returns {Promise<Restore>} */
async function example(place) {
  const { memoryFile } = place.scene
  const { socketPath, signal } = place
  const handler = await PlainHandler.start({ socketPath, memoryFile, signal })
  return {
    load: () => loadUffd(place),
    counts: () => handler.end(),
    end: () => handler.stop(),
    pid: handler.pid,
  }
}

/** @param {Place} place @returns {Promise<Restore>} */
async function reap(place) {
  const { memoryFile, pageList, reapPages } = place.scene
  const { socketPath, cache, signal } = place
  const handler = await ReapHandler.start({
    socketPath,
    memoryFile,
    pageList,
    pages: reapPages,
    fetch: cache === 'warm' ? 'cached' : 'direct',
    held: true,
    signal,
  })
  return {
    load: async () => {
      handler.begin()
      await handler.fetched
      await loadUffd(place)
    },
    counts: async () => {
      const { faults } = await handler.end()
      return { faults }
    },
    end: () => handler.stop(),
    pid: handler.pid,
  }
}

/**
 * Reads the counters of a reap-trace handler.
 *
 * @param {import('../../dist/index.js').FaultHandler} handler
 * @returns {Counts}
 */
function countsOf(handler) {
  const { faults, lateFaults, residualFaults } = handler.stats()
  return { faults, lateFaults, residualFaults }
}

/** @param {import('../../dist/index.js').FaultHandler} handler */
async function broughtBySet(handler) {
  const { source } = await handler.prefetched
  if (source !== 'working-set') throw new Error(`the bytes of the set came from the ${source}`)
}

/**
 * @param {Place} place
 * @param {{ record?: boolean, workingSet?: string, held?: boolean }} options
 * @param {typeof import('../../dist/index.js')} [build]
 * @returns {Restore}
 */
function ours(place, { held = false, ...options }, { serve } = current) {
  const { socketPath, scene } = place
  const { memoryFile } = scene
  /** @type {import('../../dist/index.js').FaultHandler | undefined} */
  let handler
  return {
    load: async () => {
      handler = await serve({
        socketPath,
        snapshot: { memoryFile },
        ...options,
        onBadWorkingSet: 'fail',
      })
      // A failure kills the VM, and so ends the wait for its answer.
      handler.closed.catch(() => {})
      await loadUffd(place, !held)
      if (!held) return
      await handler.prefetched
      await place.vm.setState('Resumed')
    },
    settled: async () => {
      if (options.workingSet && handler) await broughtBySet(handler)
      if (options.record) handler?.stopRecording()
    },
    counts: () => (handler ? countsOf(handler) : {}),
    end: async () => handler?.close(),
  }
}

/** @param {Place} place @returns {Restore} */
function before(place) {
  if (!place.before) throw new TypeError('the arm before needs --before DIST')
  return ours(place, { workingSet: place.scene.workingSet }, place.before)
}

/** @param {Place} place @returns {Restore} */
function pageCache(place) {
  const { memoryFile, workingSet } = place.scene
  const ending = new AbortController()
  const warnings = new Warnings()
  /** @type {Promise<import('../../dist/index.js').PageCachePrefetchResult> | undefined} */
  let prefetched
  return {
    load: async () => {
      prefetched = current.prefetchPageCache({
        snapshot: { memoryFile },
        workingSet,
        signal: ending.signal,
        onEvent: warnings.onEvent,
      })
      prefetched.catch(() => {})
      await loadFile(place)
    },
    settled: async () => {
      if (prefetched) warnings.expectComplete(await prefetched)
    },
    counts: () => ({}),
    end: async () => {
      ending.abort()
      await prefetched?.catch(() => {})
    },
  }
}

/** @param {Place} place @returns {Restore} */
function auto(place) {
  const { socketPath, scene } = place
  const { memoryFile, workingSet } = scene
  const warnings = new Warnings()
  /** @type {import('../../dist/index.js').UffdRestore | import('../../dist/index.js').PageCacheRestore | undefined} */
  let restore
  return {
    load: async () => {
      const plan = await current.planRestore({ snapshot: { memoryFile }, workingSet })
      restore = await current.restore(plan, { socketPath, onEvent: warnings.onEvent })
      restore.handler?.closed.catch(() => {})
      restore.prefetched.catch(() => {})
      await (restore.handler ? loadUffd(place) : loadFile(place))
    },
    settled: async () => {
      if (!restore) return
      warnings.expectComplete(await restore.prefetched)
      if (restore.handler) await broughtBySet(restore.handler)
    },
    counts: () => ({
      ...(restore?.handler && countsOf(restore.handler)),
      ...(restore && { choice: restore.backend }),
    }),
    end: async () => restore?.close(),
  }
}

/** @type {Readonly<Record<string, (place: Place) => Restore | Promise<Restore>>>} */
const prepares = {
  file,
  example,
  reap,
  'on-demand': (place) => ours(place, { record: false }),
  record: (place) => ours(place, { record: true }),
  'working-set': (place) => ours(place, { workingSet: place.scene.workingSet }),
  held: (place) => ours(place, { workingSet: place.scene.workingSet, held: true }),
  before,
  'page-cache': pageCache,
  auto,
}

export const arms = Object.keys(prepares)

/** @param {string} arm @param {Place} place */
export const prepare = async (arm, place) =>
  /** @type {NonNullable<typeof prepares[string]>} */ (prepares[arm])(place)
