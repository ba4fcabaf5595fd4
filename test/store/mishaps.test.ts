import { once } from 'node:events'
import { copyFile, rename } from 'node:fs/promises'
import { expect, onTestFinished, test } from 'vitest'
import type { StoreEvent, StoreRestoreOptions } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { fakeVmm, range } from '../support/scratch.js'
import { restoreOnce, type StoreScene, storeScene } from '../support/stores.js'
import { newPath } from '../support/working-sets.js'

const touched = [...range(100, 60), ...range(500, 40)]

/** A restore whose VM has touched these pages, before its mark. */
async function unmarked(
  { store, memoryFile, memoryPages }: StoreScene,
  pages: readonly number[],
  options: Partial<StoreRestoreOptions> = {},
) {
  const vmm = await fakeVmm()
  await vmm.map(4096, memoryPages * 4096)
  const socketPath = newPath('socket')
  const snapshot = { memoryFile }
  const restored = await store.restore({ snapshot, socketPath, backend: 'uffd', ...options })
  onTestFinished(() => restored.close())
  await vmm.handshake(socketPath)
  await vmm.read(...pages)
  return restored
}

test('a memory file that is replaced before its set is written gives no guest its bytes', async () => {
  const s = await storeScene()
  const copy = newPath('copy')
  await copyFile(s.memoryFile, copy)
  const warnings: string[] = []
  const onEvent = (event: StoreEvent) =>
    void (event.type === 'warning' && warnings.push(event.error.code))
  const id = 'build 7'
  const snapshot = { memoryFile: s.memoryFile, id }
  const restored = await unmarked(s, touched, { snapshot, onEvent })
  const other = newPath('other')
  await makeMemoryFile(other, s.memoryPages, { seed: 99 })
  await rename(other, s.memoryFile)
  await restored.ready()
  expect(await restored.learned).toMatchObject({ written: [], failure: { check: 'replaced' } })
  expect(warnings).toEqual(['ERR_SOURCE_READ'])
  // Each compares the whole memory; the first one writes the set.
  const options = { snapshot: { memoryFile: copy, id } }
  await restoreOnce({ ...s, memoryFile: copy }, touched, options)
  const last = await restoreOnce({ ...s, memoryFile: copy }, touched, options)
  expect(await last.prefetched).toMatchObject({ source: 'working-set', provenBy: 'snapshot-id' })
})

test('a caller may reuse the object that described its snapshot', async () => {
  const s = await storeScene()
  const other = await storeScene()
  const snapshot = { memoryFile: s.memoryFile, id: 'build 7' }
  const restored = await unmarked(s, touched, { snapshot })
  snapshot.memoryFile = other.memoryFile
  await restored.ready()
  expect(await restored.learned).toMatchObject({ written: [{ pageCount: 100 }] })
})

test('a listener that rejects becomes a warning of the process', async () => {
  const s = await storeScene()
  const warned = once(process, 'warning')
  const onEvent = async ({ type }: StoreEvent) => {
    if (type === 'listening') throw new Error('the listener failed')
  }
  await restoreOnce(s, touched, { onEvent })
  expect((await warned)[0].message).toMatch('the listener failed')
})
