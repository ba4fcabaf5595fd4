import { once } from 'node:events'
import {
  chmod,
  copyFile,
  mkdir,
  readdir,
  readFile,
  rename,
  rm,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { monotonicMs } from '../../src/events.js'
import { openStore, type StoreEvent, type StoreRestoreOptions } from '../../src/index.js'
import { openFolder } from '../../src/store/folder.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { fakeVmm, range } from '../support/scratch.js'
import { restoreOnce, type StoreScene, storeScene } from '../support/stores.js'
import { newPath } from '../support/working-sets.js'

const touched = [...range(100, 60), ...range(500, 40)]

/** A restore, and its VM, which has touched these pages. */
async function begin(
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
  return { vmm, restored }
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
  const { restored } = await begin(s, touched, { snapshot, onEvent })
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
  const { restored } = await begin(s, touched, { snapshot })
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

const folderOf = ({ folder }: Pick<StoreScene, 'folder'>, key: string) =>
  join(folder, 'snapshots', key)

describe('a set', () => {
  test('keeps its pages when its evidence is damaged and a page faults', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await writeFile(join(folderOf(s, snapshotKey), 'evidence'), 'damaged')
    const scene = { ...s, store: await openStore(s.folder) }
    await restoreOnce(scene, [...touched, 700])
    const last = await restoreOnce(scene, touched)
    expect(last.handler.stats().prefetched).toBeGreaterThan(90)
    expect((await scene.store.describe(snapshotKey))?.learned?.pageCount).toBe(101)
  })

  test('comes back with all its pages when its snapshot is removed during a restore', async () => {
    for (const remove of [
      (scene: StoreScene, key: string) => scene.store.forget(key),
      (scene: StoreScene, key: string) => rm(folderOf(scene, key), { recursive: true }),
    ]) {
      const s = await storeScene()
      await restoreOnce(s, touched)
      const { restored } = await begin(s, [...touched, 700])
      await remove(s, restored.snapshotKey)
      await restored.ready()
      expect(await restored.learned).toMatchObject({ written: [{ variant: undefined }] })
      const last = await restoreOnce(s, touched)
      expect(last.handler.stats().prefetched).toBeGreaterThan(90)
    }
  })

  test('whose bytes turn out to be damaged after a restore is written again', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const path = join(folderOf(s, snapshotKey), 'common.ws')
    const bytes = await readFile(path)
    await writeFile(path, bytes.fill(7, bytes.length - 4096))
    const found = await restoreOnce(s, touched)
    await found.handler.compared
    await restoreOnce(s, touched)
    const last = await restoreOnce(s, touched)
    expect(await last.prefetched).toMatchObject({ source: 'working-set', provenBy: 'written' })
  })

  test('is begun anew when the id of its snapshot comes to a memory of another size', async () => {
    const s = await storeScene()
    const id = 'build 7'
    await restoreOnce(s, touched, { snapshot: { memoryFile: s.memoryFile, id } })
    const { memoryFile } = await storeScene(512)
    const scene = { ...s, memoryFile, memoryPages: 512 }
    const pages = range(100, 60)
    await restoreOnce(scene, pages, { snapshot: { memoryFile, id } })
    const last = await restoreOnce(scene, pages, { snapshot: { memoryFile, id } })
    expect(last.handler.stats().prefetched).toBeGreaterThan(50)
    expect(await s.store.describe(last.snapshotKey)).toMatchObject({
      memoryBytes: 512 * 4096,
      restoreCount: 2,
      sets: [{ pageCount: 60 }],
    })
  })
})

describe('a child', () => {
  const childOf = async (s: StoreScene, snapshotKey: string, memoryPages = s.memoryPages) => {
    const { memoryFile } = await storeScene(memoryPages)
    const snapshot = { memoryFile, parent: snapshotKey }
    return { scene: { ...s, memoryFile, memoryPages }, snapshot }
  }

  test('learns although the evidence of its parent is damaged', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await writeFile(join(folderOf(s, snapshotKey), 'evidence'), 'damaged')
    const store = await openStore(s.folder)
    const { scene, snapshot } = await childOf({ ...s, store }, snapshotKey)
    expect(await (await restoreOnce(scene, touched, { snapshot })).learned).toMatchObject({
      written: [{ pageCount: 100 }],
    })
  })

  test('of a parent with another size of memory is recorded', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const { scene, snapshot } = await childOf(s, snapshotKey, 2048)
    const first = await restoreOnce(scene, touched, { snapshot })
    expect((await s.store.describe(first.snapshotKey))?.history).toMatchObject([{ recorded: true }])
  })

  test('of itself is recorded', async () => {
    const s = await storeScene()
    const id = 'build 7'
    const first = await restoreOnce(s, touched, { snapshot: { memoryFile: s.memoryFile, id } })
    await s.store.forget(first.snapshotKey)
    const snapshot = { memoryFile: s.memoryFile, id, parent: first.snapshotKey }
    expect(await (await restoreOnce(s, touched, { snapshot })).learned).toMatchObject({
      written: [{ pageCount: 100 }],
    })
  })
})

describe('evidence', () => {
  test.each(['a mark that is past', 'the mark of the handler'])('ends with %s', async (kind) => {
    const s = await storeScene()
    const { vmm, restored } = await begin(s, range(0, 50))
    const markMs = monotonicMs()
    if (kind === 'the mark of the handler') restored.handler!.ready()
    await vmm.read(...range(100, 50))
    await (kind === 'the mark of the handler' ? vmm.exit(0) : restored.ready(markMs))
    expect(await restored.learned).toMatchObject({ written: [{ pageCount: 50 }] })
  })

  test('survives a mark before the VM came', async () => {
    const s = await storeScene()
    const { restored } = await begin(s, touched)
    await restored.ready(restored.handler!.times().listening)
    await restored.learned
    const store = await openStore(s.folder)
    expect(await store.describe(restored.snapshotKey)).toMatchObject({ restoreCount: 1 })
  })

  test('takes no mark of the page cache from another time', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const snapshot = { memoryFile: s.memoryFile }
    const restored = await s.store.restore({ snapshot, backend: 'page-cache' })
    for (const atMs of [Number.NaN, -5, 1, Number.POSITIVE_INFINITY, 'now']) {
      await expect(restored.ready(atMs as number)).rejects.toThrow(TypeError)
    }
    await restored.ready()
    await restored.learned
    const store = await openStore(s.folder)
    expect(await store.describe(restored.snapshotKey)).toMatchObject({ restoreCount: 2 })
  })

  test('keeps variants of any name apart', async () => {
    const s = await storeScene()
    const smile = '\u{1f600}'
    const snapshot = { memoryFile: s.memoryFile, id: smile.repeat(512) }
    const names = ['__proto__', 'constructor', '../x', '\0'.repeat(1024), smile.repeat(512)]
    for (const variant of [...names, '\ud800', '\ud801']) {
      await restoreOnce(s, touched, { variant, snapshot })
    }
    const store = await openStore(s.folder)
    const known = await store.describe(snapshot)
    // UTF-8 has no lone surrogates: both are U+FFFD.
    expect(known?.learned?.variants.map(({ name }) => name)).toEqual([...names, '\ufffd'])
  })
})

test('a snapshot that is forgotten can begin anew before all its files are gone', async () => {
  const s = await storeScene()
  const { snapshotKey } = await restoreOnce(s, touched)
  const folder = (await openFolder(s.folder, false)).snapshot(snapshotKey)
  await Promise.all(range(0, 500).map((i) => writeFile(join(folder.path, `${i}`), '')))
  const removed = folder.remove()
  while ((await folder.manifestStamp()) !== undefined);
  await folder.create()
  await writeFile(folder.lockPath, '')
  await removed
  expect(await readdir(join(s.folder, 'snapshots'))).toEqual([snapshotKey])
  expect(await readdir(folder.path)).toEqual(['lock'])
})

test('a set takes the place of a link, not of the file that it leads to', async () => {
  const s = await storeScene()
  const { snapshotKey } = await restoreOnce(s, touched)
  const path = join(folderOf(s, snapshotKey), 'common.ws')
  const other = newPath('other')
  await writeFile(other, 'another file')
  await rm(path)
  await symlink(other, path)
  await restoreOnce(s, touched)
  const last = await restoreOnce(s, touched)
  expect(last.handler.stats().prefetched).toBeGreaterThan(90)
  expect(await readFile(other, 'utf8')).toBe('another file')
})

test.each(['', 'snapshots', 'snapshots/*'])(
  'nothing is learned in a folder that others may write to: store/%s',
  async (name) => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await chmod(join(s.folder, name.replace('*', snapshotKey)), 0o777)
    const opened = await openStore(s.folder).catch((error) => error)
    if (name === '') return expect(opened).toMatchObject({ code: 'ERR_UNTRUSTED_FILE' })
    const codes: string[] = []
    const onEvent = (event: StoreEvent) =>
      void (event.type === 'warning' && codes.push(event.error.code))
    await restoreOnce({ ...s, store: opened }, touched, { onEvent })
    expect(codes).toEqual(['ERR_UNTRUSTED_FILE'])
  },
)

test('an import that fails leaves nothing behind, and can be tried again', async () => {
  const s = await storeScene()
  const { snapshotKey } = await restoreOnce(s, touched)
  const evidence = newPath('evidence')
  const snapshot = { memoryFile: s.memoryFile }
  await s.store.export(snapshot, evidence)
  const store = await openStore(newPath('store'))
  // In the way of its set.
  await mkdir(join(folderOf(store, snapshotKey), 'common.ws'), { recursive: true, mode: 0o700 })
  await expect(store.import(evidence, snapshot)).rejects.toMatchObject({ check: 'regular-file' })
  expect(await store.snapshots()).toEqual([])
  expect(await store.import(evidence, snapshot)).toBe(snapshotKey)
})
