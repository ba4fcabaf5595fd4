// @ts-check
// What is measured beside the arms: the snapshot of a VM that was restored lazily, and the first restores
// of a process.
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import { serve } from '../../dist/index.js'
import { MicroVm } from '../../test/microvm.mjs'

/**
 * @typedef {import('./sample.mjs').Context} Context
 *
 * @typedef {object} SnapshotTimes
 * @property {number} lazyMs of a full snapshot of a VM that has touched nothing yet: Firecracker writes its
 *   memory from one end to the other, and asks the handler for it
 * @property {number} residentMs of the next one, when all of it is there
 *
 * @typedef {object} ProcessTimes
 * @property {number} firstMs of the first restore of a process, from `serve()` to the guest's answer
 * @property {number} tenthMs of its tenth
 */

/** @param {Context} context @returns {Promise<SnapshotTimes>} */
export async function lazySnapshot({ scene: { vmstate, memoryFile }, folder }) {
  const socketPath = join(folder, 'lazy.sock')
  const files = { vmstate: join(folder, 'lazy.state'), memoryFile: join(folder, 'lazy.memory') }
  const vm = await MicroVm.start()
  const handler = await serve({ socketPath, memoryFile, record: false })
  handler.closed.catch(() => {})
  try {
    await vm.load({ vmstate, uffdSocket: socketPath, resume: false })
    const snapshotMs = async () => {
      const startedAt = performance.now()
      await vm.snapshot(files)
      const ms = performance.now() - startedAt
      // What is still to be written would slow the next one down.
      const written = await open(files.memoryFile)
      await written.sync()
      await written.close()
      return ms
    }
    return { lazyMs: await snapshotMs(), residentMs: await snapshotMs() }
  } finally {
    await vm.kill()
    await handler.close().catch(() => {})
    await Promise.all(Object.values(files).map((file) => rm(file, { force: true })))
  }
}

/** @param {Context} context @returns {Promise<ProcessTimes>} */
export async function firstRestores({ scene, folder, signal }) {
  const child = fork(fileURLToPath(new URL('ten-restores.mjs', import.meta.url)), { signal })
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
