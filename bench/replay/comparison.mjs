// @ts-check
// Cost of a comparison of a working set with its memory file, and its effect on others: one sample
// of each, in turns with the arms.
import { constants } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { runLimit } from './limits.mjs'
import { runProgram } from './run.mjs'

/** Number of faults of a guest beside comparisons. */
const FAULTS = 30_000
/** Number of sets compared meanwhile: enough to outlast those faults. */
const COPIES = 24
const GROUPS_AHEAD = 4

/**
 * A comparison, and a minimal program with the same reads, in alternating order. With a warm page
 * cache an untimed one precedes both, since the first one after the files were read takes longer.
 *
 * @param {import('./scene.mjs').Scene} scene
 * @param {object} context
 * @param {import('./scene.mjs').Scene} context.warmUp
 * @param {number} context.round
 * @param {'cold' | 'warm'} context.state
 * @param {import('../../native/guest/driver/page-cache.mjs').PageCache} context.cache
 * @param {AbortSignal} signal
 * @returns {Promise<{ verifyMs: number, readsMs: number }>}
 */
export async function comparisonOf(scene, { warmUp, round, state, cache }, signal) {
  const { memoryFile, workingSet } = scene
  const set = () => cache.set(state, [memoryFile, workingSet])
  const verify = async () => {
    await set()
    const { verifyMs } = await runProgram('verify', { scene, warmUp }, signal)
    return { verifyMs }
  }
  const read = async () => {
    await set()
    const files = ['--set', workingSet, '--memory', memoryFile]
    const ways = ['--ahead', `${GROUPS_AHEAD}`, '--repetitions', '1']
    const { result } = await runLimit(['limit-compare', ...files, ...ways], signal)
    return { readsMs: result.medianUs / 1000 }
  }
  if (state === 'warm') await read()
  if (round % 2 === 0) return { ...(await verify()), ...(await read()) }
  return { ...(await read()), ...(await verify()) }
}

/**
 * Copies of a set, each of which has to be proven separately.
 *
 * @param {import('./scene.mjs').Scene} scene
 * @param {string} folder
 */
export function copySets({ workingSet }, folder) {
  return Promise.all(
    Array.from({ length: COPIES }, async (_, i) => {
      const path = join(folder, `working-set-${i}`)
      await copyFile(workingSet, path, constants.COPYFILE_EXCL)
      return path
    }),
  )
}

/**
 * @param {object} parts
 * @param {import('./scene.mjs').Scene} parts.scene whose guest faults
 * @param {import('./scene.mjs').Scene} parts.warmUp whose sets are compared
 * @param {readonly string[]} parts.copies
 * @param {string} parts.folder
 * @param {number} parts.round
 * @param {AbortSignal} signal
 */
export const faultsBesideComparison = ({ round, ...parts }, signal) =>
  runProgram('beside', { ...parts, pages: FAULTS, isAloneFirst: round % 2 === 0 }, signal)

/**
 * @param {object} parts
 * @param {import('./scene.mjs').Scene} parts.scene whose guest faults
 * @param {import('./scene.mjs').Scene} parts.large whose working set is prefetched meanwhile
 * @param {string} parts.folder
 * @param {AbortSignal} signal
 */
export const faultsBesidePrefetch = (parts, signal) => runProgram('victim', parts, signal)
