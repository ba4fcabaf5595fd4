// @ts-check
// Full snapshot of a VM that was restored on demand, compared with one whose memory is present.
import { open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { serve } from '../../dist/index.js'
import { MicroVm } from '../../native/guest/driver/microvm.mjs'

/**
 * @typedef {import('./sample.mjs').Context} Context
 *
 * @typedef {object} SnapshotTimes
 * @property {number} lazyMs of a full snapshot of a VM that has touched nothing yet: Firecracker writes its
 *   memory from one end to the other, and asks the handler for it
 * @property {number} residentMs of the next one, with all memory present
 */

/** @param {Context} context @returns {Promise<SnapshotTimes>} */
export async function lazySnapshot({ scene: { vmstate, memoryFile }, folder }) {
  const socketPath = join(folder, 'lazy.sock')
  const files = { vmstate: join(folder, 'lazy.state'), memoryFile: join(folder, 'lazy.memory') }
  const vm = await MicroVm.start()
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: false })
  handler.closed.catch(() => {})
  try {
    await vm.load({ vmstate, uffdSocket: socketPath, resume: false })
    const snapshotMs = async () => {
      const startedAt = performance.now()
      await vm.snapshot(files)
      const ms = performance.now() - startedAt
      // Pending write-back would slow the next snapshot down.
      const written = await open(files.memoryFile)
      await written.sync()
      await written.close()
      return ms
    }
    return { lazyMs: await snapshotMs(), residentMs: await snapshotMs() }
  } finally {
    await vm.kill()
    await handler.close()
    await Promise.all(Object.values(files).map((file) => rm(file, { force: true })))
  }
}
