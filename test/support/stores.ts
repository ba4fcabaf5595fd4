import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import {
  openStore,
  type Store,
  type StoreRestore,
  type StoreRestoreOptions,
} from '../../src/index.js'
import { FakeVmm, makeMemoryFile } from './fake-vmm.js'
import { scratchFolder } from './scratch.js'
import { newPath } from './working-sets.js'

export interface StoreScene {
  readonly folder: string
  readonly memoryFile: string
  readonly memoryPages: number
  readonly store: Store
}

/** A memory file and an empty store. */
export async function storeScene(memoryPages = 1024): Promise<StoreScene> {
  const scratch = await scratchFolder()
  const memoryFile = join(scratch, 'memory')
  await makeMemoryFile(memoryFile, memoryPages, { holes: true })
  const folder = join(scratch, 'store')
  return { folder, memoryFile, memoryPages, store: await openStore(folder) }
}

/**
 * Restores a VM that touches these pages before the mark, checks its whole memory after it, and
 * waits until the store has learned.
 */
export async function restoreOnce(
  { store, memoryFile, memoryPages }: StoreScene,
  pages: readonly number[],
  options: Partial<StoreRestoreOptions> = {},
): Promise<StoreRestore & { readonly backend: 'uffd' }> {
  const vmm = await FakeVmm.start()
  onTestFinished(() => vmm.kill())
  await vmm.map(4096, memoryPages * 4096)
  const socketPath = newPath('socket')
  const restored = await store.restore({
    snapshot: { memoryFile },
    socketPath,
    backend: 'uffd',
    connectTimeoutMs: 30_000,
    ...options,
  })
  if (restored.backend !== 'uffd') throw new Error('a restore from the page cache has no VM here')
  onTestFinished(() => restored.close())
  await vmm.handshake(socketPath)
  await restored.prefetched
  await vmm.read(...pages)
  await restored.ready()
  expect((await vmm.verify(memoryFile)).wrong).toEqual([])
  await vmm.exit(0)
  await restored.handler.closed
  await restored.learned
  return restored
}
