// @ts-check
// What the machine can do at best, and the cost of one served fault against the plainest handler.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { serve } from '../../dist/index.js'
import { root } from '../lib/machine.mjs'

const program = join(root, 'build/bench/reap-bench')

/**
 * @typedef {object} Limits
 * @property {Record<string, { installMs: number, readMs: number }>} scenes
 * @property {{ bareUs: number, oursUs: number, bareP99Us: number, oursP99Us: number }} fault
 */

/**
 * @param {readonly string[]} words
 * @param {AbortSignal} signal
 */
async function run(words, signal) {
  const { stdout } = await promisify(execFile)(program, [...words], { signal })
  return JSON.parse(stdout)
}

/**
 * @param {readonly import('./scene.mjs').Scene[]} scenes
 * @param {{ cache: import('../lib/page-cache.mjs').PageCache, folder: string, signal: AbortSignal }} context
 * @returns {Promise<Limits>}
 */
export async function limitsOf(scenes, { cache, folder, signal }) {
  const found = /** @type {Limits['scenes']} */ ({})
  for (const { name, memoryFile, pageList, reapPages } of scenes) {
    await cache.set('warm', [memoryFile])
    const install = await run(
      ['limit-install', '--memory', memoryFile, '--pages', pageList],
      signal,
    )
    const read = await run(['limit-read', '--file', reapPages], signal)
    found[name] = { installMs: install.best.medianUs / 1000, readMs: read.best.medianUs / 1000 }
  }
  const scene = scenes[0]
  if (!scene) throw new TypeError('no cell has that name')
  return { scenes: found, fault: await faultCost(scene, folder, signal) }
}

/**
 * The same process touches the same pages: served by the plainest handler, and by ours.
 * @param {import('./scene.mjs').Scene} scene
 * @param {string} folder
 * @param {AbortSignal} signal
 */
async function faultCost({ memoryFile }, folder, signal) {
  const rounds = /** @type {{ bare: any, ours: any }[]} */ ([])
  for (let round = 0; round < 5; round++) {
    const bare = await run(['limit-fault', '--repetitions', '1'], signal)
    const socketPath = join(folder, `fault-${round}.sock`)
    const handler = await serve({ socketPath, memoryFile, record: false })
    const ours = await run(['touch', '--socket', socketPath, '--memory', memoryFile], signal)
    await handler.close()
    rounds.push({ bare, ours })
  }
  const median = (/** @type {number[]} */ values) =>
    /** @type {number} */ (values.sort((a, b) => a - b)[Math.floor(values.length / 2)])
  return {
    bareUs: median(rounds.map(({ bare }) => bare.sleeping.p50.medianUs)),
    oursUs: median(rounds.map(({ ours }) => ours.p50Us)),
    bareP99Us: median(rounds.map(({ bare }) => bare.sleeping.p99.medianUs)),
    oursP99Us: median(rounds.map(({ ours }) => ours.p99Us)),
  }
}
