// @ts-check
// Process of first-restores.mjs: restores one snapshot ten times, and sends the time of each.
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { serve } from '../../dist/index.js'
import { MicroVm } from '../../native/guest/driver/microvm.mjs'

const RESTORES = 10

/**
 * Warms up the client of Firecracker's API, so that its compilation is not counted.
 *
 * @param {import('./scene.mjs').Scene} scene
 */
async function restoreByFile({ vmstate, memoryFile, request }) {
  const vm = await MicroVm.start()
  try {
    await vm.load({ vmstate, memoryFile })
    await vm.ask(request)
  } finally {
    await vm.kill()
  }
}

/**
 * @param {import('./scene.mjs').Scene} scene
 * @param {string} socketPath
 */
async function restoreMs({ vmstate, memoryFile, workingSet, request }, socketPath) {
  const vm = await MicroVm.start()
  vm.send(request)
  const startedAt = performance.now()
  const handler = await serve({
    socketPath,
    snapshot: { memoryFile },
    workingSet,
    onBadWorkingSet: 'fail',
  })
  handler.closed.catch(() => {})
  try {
    await vm.load({ vmstate, uffdSocket: socketPath })
    await vm.answer(request)
    const ms = performance.now() - startedAt
    await handler.prefetched
    return ms
  } finally {
    await vm.kill()
    await handler.close()
  }
}

process.once('message', async (/** @type {any} */ { scene, folder }) => {
  await restoreByFile(scene)
  const times = []
  while (times.length < RESTORES) {
    times.push(await restoreMs(scene, join(folder, `ten-${process.pid}.sock`)))
  }
  process.send?.(times, () => process.disconnect())
})
