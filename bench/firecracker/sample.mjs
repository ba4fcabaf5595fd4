// @ts-check
// Concurrent restores of one snapshot with one arm. The processes of Firecracker, and of handlers
// in separate processes, run before the clock starts.
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { MicroVm } from '../../native/guest/driver/microvm.mjs'
import { keepCoresBusy } from '../lib/busy-cores.mjs'
import { cpuMsOf, ownCpuMs } from '../lib/cpu-time.mjs'
import { runLimit } from '../replay/limits.mjs'
import { prepare } from './arms.mjs'

/**
 * @typedef {object} Sample
 * @property {string} arm
 * @property {string} cache
 * @property {number} atOnce
 * @property {boolean} busy
 * @property {number} round
 * @property {number} allMs until the last guest had answered
 * @property {readonly number[]} vmMs of each VM, since the one start
 * @property {number} cpuMs a restore, of all processes
 * @property {number} wrong answers
 * @property {readonly import('./arms.mjs').Counts[]} counts
 *
 * @typedef {object} What is restored
 * @property {string} arm
 * @property {'cold' | 'warm'} cache
 * @property {number} atOnce
 * @property {boolean} busy with an endless loop beside each core
 * @property {number} round
 *
 * @typedef {object} Context
 * @property {import('./scene.mjs').Scene} scene
 * @property {string} folder for sockets
 * @property {AbortSignal} signal
 * @property {typeof import('../../dist/index.js')} [before]
 */

let sockets = 0

/** Awaits all, even if one fails, so that nothing runs on after the error. */
async function every(/** @type {readonly (Promise<unknown> | undefined)[]} */ promises) {
  const failed = (await Promise.allSettled(promises)).find(({ status }) => status === 'rejected')
  if (failed?.status === 'rejected') throw failed.reason
}

/**
 * Checks that the guest found its memory right, and is the one of the snapshot.
 *
 * @param {MicroVm} vm
 * @param {import('./scene.mjs').Scene} scene
 */
async function answersRight(vm, scene) {
  try {
    return (await vm.answer(scene.request)).requests === scene.requests
  } catch (error) {
    if (vm.output.includes('WRONG')) return false
    throw error
  }
}

/**
 * @param {What} what
 * @param {Context} context
 * @param {(files: 'cold' | 'warm') => Promise<void>} setCache
 * @returns {Promise<Sample>}
 */
export async function takeSample(what, context, setCache) {
  const { arm, cache, atOnce, busy } = what
  const { scene, folder, signal, before } = context
  /** @type {undefined | (() => Promise<void>)} */
  let stopLoops
  /** @type {MicroVm[]} */
  const vms = []
  /** @type {import('./arms.mjs').Restore[]} */
  const restores = []
  try {
    const each = Array.from({ length: atOnce }, (_, i) => i)
    await every(each.map(async (i) => (vms[i] = await MicroVm.start())))
    await setCache(cache)
    await every(
      vms.map(async (vm, i) => {
        const socketPath = join(folder, `${++sockets}.sock`)
        const place = { vm, scene, socketPath, cache, signal, ...(before && { before }) }
        restores[i] = await prepare(arm, place)
        // It waits in the console for the guest.
        vm.send(scene.request)
      }),
    )
    const pids = [...vms, ...restores].flatMap(({ pid }) => pid ?? [])
    const cpuMs = () => pids.reduce((sum, pid) => sum + cpuMsOf(pid), ownCpuMs())

    if (busy) stopLoops = await keepCoresBusy()
    const cpuBefore = cpuMs()
    const startedAt = performance.now()
    /** @type {number[]} */
    const vmMs = []
    let wrong = 0
    await every(
      vms.map(async (vm, i) => {
        await restores[i]?.load()
        if (!(await answersRight(vm, scene))) wrong++
        vmMs[i] = performance.now() - startedAt
      }),
    )
    await every(restores.map((restore) => restore.settled?.()))
    const spentMs = cpuMs() - cpuBefore
    const counts = await Promise.all(restores.map((restore) => restore.counts()))
    const perRestoreMs = spentMs / atOnce
    return { ...what, allMs: Math.max(...vmMs), vmMs, cpuMs: perRestoreMs, wrong, counts }
  } finally {
    await stopLoops?.()
    await Promise.all(vms.map((vm) => vm?.kill()))
    await Promise.all(restores.map((restore) => restore?.end()))
  }
}

/**
 * Minimum time for the kernel to install a set of these pages without other work.
 *
 * @param {import('./scene.mjs').Scene} scene
 * @param {AbortSignal} signal
 */
export async function installLimitMs({ memoryFile, pageList }, signal) {
  const files = ['--memory', memoryFile, '--pages', pageList]
  // The first repetition gets its memory from the machine's hypervisor; later ones measure the
  // kernel.
  const limit = await runLimit(['limit-install', ...files, '--repetitions', '5'], signal)
  return limit.best.medianUs / 1000
}
