// @ts-check
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const programs = {
  one: fileURLToPath(new URL('sample.mjs', import.meta.url)),
  many: fileURLToPath(new URL('concurrent.mjs', import.meta.url)),
  burst: fileURLToPath(new URL('burst.mjs', import.meta.url)),
  shared: fileURLToPath(new URL('shared.mjs', import.meta.url)),
  verify: fileURLToPath(new URL('verify.mjs', import.meta.url)),
  beside: fileURLToPath(new URL('beside-comparison.mjs', import.meta.url)),
  victim: fileURLToPath(new URL('beside-prefetch.mjs', import.meta.url)),
}

/**
 * @param {keyof typeof programs} program
 * @param {object} request
 * @param {AbortSignal} signal
 */
export async function runProgram(program, request, signal) {
  const words = ['--expose-gc', programs[program], JSON.stringify(request)]
  const { stdout } = await promisify(execFile)(process.execPath, words, { signal })
  return JSON.parse(stdout)
}

/**
 * One sample of a cell, measured in a separate process.
 * @param {import('./cells.mjs').Cell} cell
 * @param {{ scene: import('./scene.mjs').Scene, warmUp: import('./scene.mjs').Scene, folder: string }} parts
 * @param {AbortSignal} signal
 * @returns {Promise<Record<string, number>>}
 */
export async function takeSample(cell, parts, signal) {
  const program = cell.concurrent ? 'many' : cell.shared ? 'shared' : cell.burst ? 'burst' : 'one'
  const sample = await runProgram(program, { ...cell, ...parts }, signal)
  if (sample.wrong > 0) throw new Error(`${cell.name}: the guest found ${sample.wrong} wrong words`)
  return sample
}
