import { rename } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { type Scene, scene, serveScene } from '../support/scratch.js'

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
  await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile: s.memoryFile } })
  return path
}

test('a memory file that is replaced after serve() gives the bytes of the one that was opened', async () => {
  const s = await scene({ pages: PAGES })
  const handler = await serveScene(s, { workingSet: await set(s) })
  const opened = join(s.folder, 'opened')
  await rename(s.memoryFile, opened)
  await makeMemoryFile(s.memoryFile, PAGES, { seed: 99 })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 700, complete: true })
  expect((await s.vmm.verify(opened)).wrong).toEqual([])
})

test('a memory file that stays is prefetched', async () => {
  const s = await scene({ pages: PAGES })
  const workingSet = await set(s)
  const handler = await serveScene(s, { workingSet, onBadWorkingSet: 'fail' })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 700, complete: true })
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
