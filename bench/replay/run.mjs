// @ts-check
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const programs = {
  one: fileURLToPath(new URL('sample.mjs', import.meta.url)),
  many: fileURLToPath(new URL('concurrent.mjs', import.meta.url)),
  shared: fileURLToPath(new URL('shared.mjs', import.meta.url)),
}

/**
 * One sample of a cell, measured by a process of its own.
 * @param {import('./cells.mjs').Cell} cell
 * @param {{ scene: import('./scene.mjs').Scene, warmUp: import('./scene.mjs').Scene, folder: string, keeps?: boolean }} parts
 * @param {AbortSignal} signal
 * @returns {Promise<Record<string, number>>}
 */
export async function takeSample(cell, parts, signal) {
  const program = cell.concurrent ? programs.many : cell.shared ? programs.shared : programs.one
  const request = JSON.stringify({ ...cell, ...parts })
  const { stdout } = await promisify(execFile)(
    process.execPath,
    ['--expose-gc', program, request],
    { signal },
  )
  const sample = JSON.parse(stdout)
  if (sample.wrong > 0) throw new Error(`${cell.name}: the guest found ${sample.wrong} wrong words`)
  return sample
}
