// @ts-check
// Limits of the machine, and the cost of one served fault compared with the minimal handler: one
// sample of each, in turns with the arms.
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { serve } from '../../dist/index.js'
import { root } from '../lib/machine.mjs'

const MANY_PAGES = 2 ** 15

const program = join(root, 'build/Release/reap-bench')

/**
 * @param {readonly string[]} words
 * @param {AbortSignal} signal
 */
export async function runLimit(words, signal) {
  const { stdout } = await promisify(execFile)(program, [...words], { signal })
  return JSON.parse(stdout)
}

/**
 * Milliseconds by number of threads for installs, and by threads and size of a read for reads.
 * @param {import('./scene.mjs').Scene} scene
 * @param {AbortSignal} signal
 * @returns {Promise<{ install: Record<string, number>, read: Record<string, number> }>}
 */
export async function limitsOf({ memoryFile, pageList, reapPages, pages }, signal) {
  // The first repetition gets its memory from the machine's hypervisor; later ones measure the
  // kernel.
  const repetitions = pages > MANY_PAGES ? '3' : '5'
  const install = await runLimit(
    ['limit-install', '--memory', memoryFile, '--pages', pageList, '--repetitions', repetitions],
    signal,
  )
  const ways = ['--threads', '1,2,4', '--blocks', `${2 ** 20},${2 ** 23}`, '--repetitions', '1']
  const read = await runLimit(['limit-read', '--file', reapPages, ...ways], signal)
  const table = (/** @type {any[]} */ results, /** @type {(result: any) => string} */ nameOf) =>
    Object.fromEntries(results.map((result) => [nameOf(result), result.medianUs / 1000]))
  return {
    install: table(install.results, ({ threads }) => `${threads}`),
    read: table(read.results, ({ threads, blockBytes }) => `${threads} × ${blockBytes}`),
  }
}

/**
 * The same process touches the same pages, served by the minimal handler and by reap-trace.
 * @param {import('./scene.mjs').Scene} scene
 * @param {string} folder
 * @param {AbortSignal} signal
 */
export async function faultCostOf({ memoryFile }, folder, signal) {
  const bare = await runLimit(['limit-fault', '--repetitions', '1'], signal)
  const socketPath = join(folder, 'fault.sock')
  // With recording, so that each fault brings one page only.
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
  try {
    const ours = await runLimit(['touch', '--socket', socketPath, '--memory', memoryFile], signal)
    return {
      bareUs: bare.sleeping.p50.medianUs,
      bareP99Us: bare.sleeping.p99.medianUs,
      oursUs: ours.p50Us,
      oursP99Us: ours.p99Us,
    }
  } finally {
    await handler.close()
  }
}
