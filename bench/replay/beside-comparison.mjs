// @ts-check
// Wait of a guest for a page while sets of another snapshot are compared in the background, and
// without comparisons: faults on demand, one after the other. Restores of unproven sets whose
// guests have finished leave the comparisons to do.
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { serve } from '../../dist/index.js'
import { KvmGuest } from '../../native/guest/driver/kvm-guest.mjs'
import { root } from '../lib/machine.mjs'

const program = join(root, 'build/Release/reap-bench')

/**
 * @type {{
 *   scene: import('./scene.mjs').Scene,
 *   warmUp: import('./scene.mjs').Scene,
 *   copies: readonly string[],
 *   folder: string,
 *   pages: number,
 *   isAloneFirst: boolean,
 * }}
 */
const { scene, warmUp, copies, folder, pages, isAloneFirst } = JSON.parse(process.argv[2] ?? '{}')
const noProofs = await mkdtemp(join(folder, 'proofs-'))
process.env.REAP_TRACE_PROOFS = noProofs

/** p99 of the faults of a guest without a working set. */
async function faults(/** @type {number} */ pages) {
  const { memoryFile } = scene
  const socketPath = join(folder, `${process.pid}-faults.sock`)
  // With recording, so that each fault brings one page only.
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
  try {
    const words = ['touch', '--socket', socketPath, '--memory', memoryFile, '--pages', `${pages}`]
    const { stdout } = await promisify(execFile)(program, words)
    return /** @type {{ p50Us: number, p99Us: number }} */ (JSON.parse(stdout))
  } finally {
    await handler.close()
  }
}

/** @type {KvmGuest[]} */
const guests = []
async function restoreUnproven(/** @type {string} */ workingSet, /** @type {number} */ i) {
  const { memoryFile, trace } = warmUp
  const socketPath = join(folder, `${process.pid}-${i}.sock`)
  const handler = await serve({ socketPath, snapshot: { memoryFile }, workingSet })
  const guest = new KvmGuest({ memoryFile, trace, socketPath, threads: true, pause: ['done'] })
  guests.push(guest)
  await guest.event('done')
  const { source } = await handler.prefetched
  if (source !== 'memory-file') throw new Error(`the bytes of the set came from the ${source}`)
  return handler
}

try {
  await faults(1000)
  const before = isAloneFirst ? await faults(pages) : undefined
  const handlers = await Promise.all(copies.map(restoreUnproven))
  let through = 0
  for (const handler of handlers) handler.compared.then(() => through++)
  const throughBefore = through
  const beside = await faults(pages)
  const throughAfter = through
  const compared = await Promise.all(handlers.map((handler) => handler.compared))
  if (!compared.every((result) => result?.identical)) throw new Error('a set was not compared')
  const alone = before ?? (await faults(pages))
  const sample = {
    aloneP99Us: alone.p99Us,
    aloneP50Us: alone.p50Us,
    besideP99Us: beside.p99Us,
    besideP50Us: beside.p50Us,
    comparisons: throughAfter - throughBefore,
    // False if the last faults ran without a comparison.
    wentOn: throughAfter < copies.length,
  }
  process.stdout.write(`${JSON.stringify(sample)}\n`)
  await Promise.all(handlers.map((handler) => handler.close()))
} finally {
  await Promise.all(guests.map((guest) => guest.kill()))
  await rm(noProofs, { recursive: true, force: true })
}
