import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { afterEach, expect, test, vi } from 'vitest'
import { Trace, WorkingSet } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { type Scene, scene, serveScene } from '../support/scratch.js'

// What happens between the check of the working set and the opening of the memory file.
const race = vi.hoisted(() => ({ afterCheck: async (): Promise<void> => {} }))

vi.mock('../../src/snapshot/disk-image.js', async (original) => {
  const snapshot = await original<typeof import('../../src/snapshot/disk-image.js')>()
  return {
    ...snapshot,
    statMemoryFile: async (path: string) => {
      const stats = await snapshot.statMemoryFile(path)
      await race.afterCheck()
      return stats
    },
  }
})

afterEach(() => {
  race.afterCheck = async () => {}
})

const PAGES = 1024

async function set(s: Scene): Promise<string> {
  const pages = Uint32Array.from({ length: 700 }, (_, i) => (i * 37) % PAGES)
  const trace = new Trace({
    pageSize: 4096,
    memoryBytes: PAGES * 4096,
    pages,
    timesUs: pages.map((_, i) => i),
  })
  const path = join(s.folder, 'set')
  await WorkingSet.fromTraces([trace]).write(path, { memoryFile: s.memoryFile })
  return path
}

/** Another snapshot takes the place of the memory file as soon as the working set was checked. */
async function replaceAfterCheck(s: Scene): Promise<void> {
  const next = join(s.folder, 'next')
  await makeMemoryFile(next, PAGES, { seed: 99 })
  race.afterCheck = async () => {
    race.afterCheck = async () => {}
    await rename(next, s.memoryFile)
  }
}

test('a memory file that is replaced after the check gives its own bytes, and the set none', async () => {
  const s = await scene({ pages: PAGES })
  const workingSet = await set(s)
  await replaceAfterCheck(s)
  const handler = await serveScene(s, { workingSet })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pages: 700, complete: true })
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
})

test('a memory file that stays is prefetched', async () => {
  const s = await scene({ pages: PAGES })
  const workingSet = await set(s)
  const handler = await serveScene(s, { workingSet, onBadWorkingSet: 'fail' })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pages: 700, complete: true })
})

test('a second detach() while one runs has the same end', async () => {
  const s = await scene({ pages: 16 * PAGES })
  const handler = await serveScene(s)
  await s.vmm.handshake(s.socketPath)
  await handler.connected
  const first = handler.detach()
  const second = handler.detach()
  expect(second).toBe(first)
  expect(await second).toMatchObject({ state: 'detached' })
  expect(await first).toBe(await handler.closed)
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
})
