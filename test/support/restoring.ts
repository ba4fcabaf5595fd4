import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import {
  type FaultHandler,
  type PageCacheRestore,
  type PlanRestoreOptions,
  planRestore,
  type RestoreOptions,
  restore,
  type Snapshot,
  type UffdRestore,
} from '../../src/index.js'
import { evict, readPages } from './page-cache.js'
import { scratchFolder } from './scratch.js'
import { diskTrace, makeDisk, makeMemory, PAGE, setOf } from './working-sets.js'

export const range = (first: number, count: number) =>
  Array.from({ length: count }, (_, i) => first + i)
export const order = range(0, 400).map((i) => (i * 797) % 4096)
export const onDisk = [10, 11, 200]

/** A snapshot with a working set; all of it is in the page cache, as it was just written. */
export async function snapshot({ pages = order, disk = false } = {}) {
  const folder = await scratchFolder()
  const memoryFile = makeMemory(4096)
  const workingSet = join(folder, 'vm.ws')
  const diskImages = disk ? [makeDisk(2 ** 20)] : []
  const traces = disk
    ? [
        diskTrace(
          2 ** 20,
          onDisk.map((page) => [page, page]),
        ),
      ]
    : []
  const set = setOf(memoryFile, pages, PAGE, traces)
  await set.write(workingSet, { snapshot: { memoryFile, diskImages } })
  readPages(memoryFile, range(0, 4096))
  const files = { memoryFile, socketPath: join(folder, 'uffd.sock') }
  const all = { ...files, workingSet, ...(disk && { diskImages }) }
  return { folder, files, all, set, evict: () => evict(memoryFile, workingSet, ...diskImages) }
}

type Wishes = Snapshot & Omit<PlanRestoreOptions, 'snapshot'> & RestoreOptions

/** Plans a restore, for threads unless `vcpus` is set, and carries it out. */
export async function planAndRestore(wishes: Wishes): Promise<UffdRestore | PageCacheRestore> {
  const { memoryFile, diskImages, workingSet, backend, record, ...rest } = wishes
  const { vcpus = 'threads', pageSize, onBadWorkingSet, ...options } = rest
  const plan = await planRestore({
    snapshot: { memoryFile, diskImages },
    ...{ workingSet, backend, record, vcpus, pageSize, onBadWorkingSet, signal: options.signal },
  })
  return restore(plan, { connectTimeoutMs: 30_000, ...options })
}

/** The same, closed when the test ends. */
export async function restored(wishes: Wishes): Promise<UffdRestore | PageCacheRestore> {
  const found = await planAndRestore(wishes)
  onTestFinished(() => found.close())
  return found
}

export function handlerOf({ handler }: UffdRestore | PageCacheRestore): FaultHandler {
  if (!handler) throw new Error('expected a restore by a fault handler')
  return handler
}

export const file = (path: string) => ({ backend_type: 'File', backend_path: path })
export const uffd = (path: string) => ({ backend_type: 'Uffd', backend_path: path })
