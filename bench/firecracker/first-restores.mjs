// @ts-check
// Time of a process's first restore over that of its tenth.
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

/**
 * @typedef {object} FirstRestoreTimes
 * @property {number} firstMs of the first restore of a process, from `serve()` to the guest's answer
 * @property {number} tenthMs of its tenth
 */

/** @param {import('./sample.mjs').Context} context @returns {Promise<FirstRestoreTimes>} */
export async function firstRestores({ scene, folder, signal }) {
  const child = fork(fileURLToPath(new URL('first-restores-child.mjs', import.meta.url)), {
    signal,
  })
  try {
    child.send({ scene, folder })
    const [times] = await Promise.race([
      once(child, 'message'),
      once(child, 'exit').then(([code]) => {
        throw new Error(`the process of ten restores ended with ${code}`)
      }),
    ])
    return { firstMs: times.at(0), tenthMs: times.at(-1) }
  } finally {
    if (child.exitCode === null) child.kill()
  }
}
