import {
  chmod,
  copyFile,
  readdir,
  stat,
  truncate,
  unlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { openStore, type StoreEvent } from '../../src/index.js'
import { fakeVmm, range } from '../support/scratch.js'
import { restoreOnce, storeScene } from '../support/stores.js'
import { newPath } from '../support/working-sets.js'

const touched = [...range(100, 60), ...range(500, 40)]

describe('a snapshot in a store', () => {
  test('is recorded by its first restore, and prefetched by the next one', async () => {
    const s = await storeScene()
    const first = await restoreOnce(s, touched)
    expect(first.plan.workingSet).toBeUndefined()
    expect(await first.learned).toMatchObject({ written: [{ pageCount: 100 }], drifts: [] })
    const second = await restoreOnce(s, touched)
    expect(await second.prefetched).toMatchObject({ complete: true, source: 'working-set' })
    const { residualFaults, prefetched } = second.handler.stats()
    expect(prefetched + residualFaults).toBeGreaterThanOrEqual(100)
    expect(prefetched).toBeGreaterThanOrEqual(95)
    expect(second.heldOutPageCount).toBe(100 - prefetched)
    expect(first.heldOutPageCount).toBe(0)
    const known = await s.store.describe({ memoryFile: s.memoryFile })
    expect(known).toMatchObject({
      key: first.snapshotKey,
      memoryFile: s.memoryFile,
      memoryBytes: s.memoryPages * 4096,
      restoreCount: 2,
      sets: [{ variant: undefined, pageCount: 100 }],
      history: [{ recorded: true, faults: 100 }, { recorded: false }],
    })
    expect(second.snapshotKey).toBe(first.snapshotKey)
  })

  test('learns pages that its set lacks, once their faults cost more than another set', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const more = [...touched, ...range(700, 50)]
    const events: StoreEvent[] = []
    const onEvent = (event: StoreEvent) => void events.push(event)
    const written = () => events.flatMap((each) => (each.type === 'learned' ? each.written : []))
    for (let i = 0; i < 200 && written().length === 0; i++) await restoreOnce(s, more, { onEvent })
    expect(written()).toEqual([{ variant: undefined, pageCount: 150, previousPageCount: 100 }])
    const last = await restoreOnce(s, more)
    expect((await last.handler.closed).statsAtReady?.residualFaults).toBeLessThan(5)
  })

  test('takes the cost of an install from its CPU time, which a busy host does not lengthen', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const { handler, snapshotKey } = await restoreOnce(s, touched)
    const { prefetch, prefetched } = handler.stats()
    const { learned } = (await s.store.describe(snapshotKey))!
    const cpuUs = (1000 * prefetch.installCpuMs) / prefetched
    expect(cpuUs).toBeGreaterThan(0)
    expect(learned?.costs.installUs).toBeCloseTo(cpuUs, 3)
  })

  test('learns at the end of a VM without a mark, unless it waits for one', async () => {
    const s = await storeScene()
    const restoreOf = async (waitForReady: boolean) => {
      const vmm = await fakeVmm()
      await vmm.map(4096, s.memoryPages * 4096)
      const socketPath = newPath('socket')
      const snapshot = { memoryFile: s.memoryFile }
      const options = { snapshot, socketPath, backend: 'uffd', waitForReady } as const
      const restored = await s.store.restore(options)
      onTestFinished(() => restored.close())
      await vmm.handshake(socketPath)
      await vmm.read(7, 8, 9)
      await vmm.exit(0)
      await restored.handler?.closed
      return restored
    }
    const failed = await restoreOf(true)
    await failed.close()
    expect(await failed.learned).toBeUndefined()
    const late = await restoreOf(true)
    await late.ready()
    expect(await late.learned).toMatchObject({
      written: [{ pageCount: 3, previousPageCount: undefined }],
    })
    expect(await (await restoreOf(false)).learned).toMatchObject({ written: [] })
    expect(await s.store.snapshots()).toMatchObject([{ restoreCount: 2 }])
  })

  test('is found again by another process, and where its file was linked or moved', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const { link, rename } = await import('node:fs/promises')
    const linked = newPath('linked')
    await link(s.memoryFile, linked)
    const store = await openStore(s.folder)
    expect((await store.describe({ memoryFile: linked }))?.key).toBe(snapshotKey)
    const moved = newPath('moved')
    await rename(s.memoryFile, moved)
    const restored = await restoreOnce({ ...s, store, memoryFile: moved }, touched)
    expect(restored.handler.stats().prefetched).toBeGreaterThan(90)
  })

  test('is another one after a change of its file, unless it has an id', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    await utimes(s.memoryFile, 1, 1)
    expect(await s.store.describe({ memoryFile: s.memoryFile })).toBeUndefined()
    const named = { snapshot: { memoryFile: s.memoryFile, id: 'build 7' } }
    const first = await restoreOnce(s, touched, named)
    const copy = newPath('copy')
    await copyFile(s.memoryFile, copy)
    const second = await restoreOnce({ ...s, memoryFile: copy }, touched, {
      snapshot: { memoryFile: copy, id: 'build 7' },
    })
    expect(second.snapshotKey).toBe(first.snapshotKey)
    expect(second.handler.stats().prefetched).toBeGreaterThan(90)
  })

  test('leaves the store when it is forgotten', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    expect(await s.store.snapshots()).toMatchObject([{ key: snapshotKey, restoreCount: 1 }])
    expect(await s.store.forget(snapshotKey)).toBe(true)
    expect(await s.store.forget({ memoryFile: s.memoryFile })).toBe(false)
    expect(await s.store.snapshots()).toEqual([])
    expect(await readdir(join(s.folder, 'snapshots'))).toEqual([])
    expect(await readdir(join(s.folder, 'paths'))).toEqual([])
    const again = await restoreOnce(s, touched)
    expect(again.plan.workingSet).toBeUndefined()
    expect(await s.store.snapshots()).toHaveLength(1)
  })

  test('passes on its pages to a child at once, with the bytes of the child', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const child = await storeScene()
    const scene = { ...s, memoryFile: child.memoryFile }
    const snapshot = { memoryFile: child.memoryFile, parent: snapshotKey }
    const first = await restoreOnce(scene, touched, { snapshot })
    expect(await first.prefetched).toMatchObject({ pageCount: 100, source: 'memory-file' })
    expect(first.snapshotKey).not.toBe(snapshotKey)
    expect(await s.store.describe(first.snapshotKey)).toMatchObject({ parent: snapshotKey })
    const second = await restoreOnce(scene, touched, { snapshot })
    expect(second.handler.stats().prefetched).toBeGreaterThan(90)
  })

  test('passes on its pages to a snapshot that was made again in its place', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const again = await storeScene()
    await copyFile(again.memoryFile, s.memoryFile)
    const store = await openStore(s.folder)
    const first = await restoreOnce({ ...s, store }, touched)
    expect(await first.prefetched).toMatchObject({ pageCount: 100, source: 'memory-file' })
    expect(first.snapshotKey).not.toBe(snapshotKey)
    expect(await store.describe(first.snapshotKey)).toMatchObject({ parent: snapshotKey })
    // One of another size has nothing to do with it.
    const larger = await storeScene(2048)
    await copyFile(larger.memoryFile, s.memoryFile)
    const other = await restoreOnce({ ...larger, store, memoryFile: s.memoryFile }, touched)
    expect(other.plan.workingSet).toBeUndefined()
  })

  test('keeps its evidence on its way to another host', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const file = newPath('evidence')
    await s.store.export({ memoryFile: s.memoryFile }, file)
    const memoryFile = newPath('copy')
    await copyFile(s.memoryFile, memoryFile)
    const store = await openStore(newPath('store'))
    const key = await store.import(file, { memoryFile })
    expect(await store.describe(key)).toMatchObject({ sets: [{ pageCount: 100 }] })
    const restored = await restoreOnce({ ...s, store, memoryFile }, touched)
    expect(restored.handler.stats().prefetched).toBeGreaterThan(90)
    await expect(store.import(file, { memoryFile })).rejects.toMatchObject({
      code: 'ERR_STORE_INVALID',
      check: 'known-snapshot',
    })
    // Not as a part of the store: nothing is to be forgotten.
    await expect(store.import(memoryFile, { memoryFile })).rejects.toMatchObject({
      message: expect.stringMatching(/^\S+ cannot be imported: it does not begin with/),
      hint: expect.stringMatching(/store export/),
    })
    await expect(s.store.export('0123456789abcdef', file)).rejects.toMatchObject({
      check: 'unknown-snapshot',
    })
  })

  test('passes on its pages also if it was imported and is made again before a restore', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const file = newPath('evidence')
    await s.store.export({ memoryFile: s.memoryFile }, file)
    const memoryFile = newPath('copy')
    await copyFile(s.memoryFile, memoryFile)
    const store = await openStore(newPath('store'))
    await store.import(file, { memoryFile })
    await unlink(memoryFile)
    await copyFile(s.memoryFile, memoryFile)
    const restored = await restoreOnce({ ...s, store, memoryFile }, touched)
    expect(await restored.prefetched).toMatchObject({ pageCount: 100, source: 'memory-file' })
  })
})

describe('a store', () => {
  test('belongs to its owner alone', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const names = await readdir(s.folder, { recursive: true })
    for (const name of ['', ...names]) {
      const { mode } = await stat(join(s.folder, name))
      expect([name, (mode & 0o777).toString(8)]).toEqual([name, mode & 0o40000 ? '700' : '600'])
    }
  })

  test('that is read-only serves and stays as it is', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const store = await openStore(s.folder, { readOnly: true })
    const restored = await restoreOnce({ ...s, store }, [...touched, 800])
    expect(restored.handler.stats().prefetched).toBe(100)
    expect(await restored.learned).toBeUndefined()
    await expect(store.forget(restored.snapshotKey)).rejects.toThrow(TypeError)
    expect(await store.describe(restored.snapshotKey)).toMatchObject({ restoreCount: 1 })
    await expect(openStore(newPath('none'), { readOnly: true })).rejects.toMatchObject({
      code: 'ERR_STORE_IO',
    })
  })

  test('keeps to its size by dropping what was restored least recently', async () => {
    const s = await storeScene()
    await restoreOnce(s, touched)
    const { diskBytes, key } = (await s.store.snapshots())[0]!
    const other = await storeScene()
    const store = await openStore(s.folder, { maxBytes: Math.ceil(diskBytes * 1.5) })
    const second = await restoreOnce({ ...other, store }, touched)
    expect((await store.snapshots()).map((each) => each.key)).toEqual([second.snapshotKey])
    expect(second.snapshotKey).not.toBe(key)
  })

  test('is refused if others may write to it, or a later version has written it', async () => {
    const s = await storeScene()
    await chmod(s.folder, 0o777)
    const refusal = await openStore(s.folder).catch((error) => error)
    expect(refusal).toMatchObject({ code: 'ERR_UNTRUSTED_FILE', check: 'mode', path: s.folder })
    // Nothing makes a store trusted.
    expect(refusal.hint).toMatch(/chmod go-w\.$/)
    await chmod(s.folder, 0o700)
    await writeFile(join(s.folder, 'store.json'), '{ "reapTraceStore": 2 }')
    const later = await openStore(s.folder).catch((error) => error)
    expect(later).toMatchObject({ code: 'ERR_STORE_INVALID', check: 'version' })
    expect(later.hint).toMatch(/^Update/)
  })

  test.each([
    ['does not exist', 'none', true, /^cannot open the store .*ENOENT$/, /^Check the path/],
    ['has no store', '.', true, /is not a store/, /^Check the path/],
    ['has other files', '.', false, /is not a store/, /^Choose a folder that is empty/],
    ['is a file', 'memory', false, /^cannot open the store .*ENOTDIR$/, /path of a folder/],
    ['cannot be made', 'memory/store', false, /^cannot create the store .*ENOTDIR$/, undefined],
    ['is shared', '/tmp', false, /01777/, /folder inside it/],
  ])('tells what to do with a folder that %s', async (_, name, readOnly, message, hint) => {
    const s = await storeScene()
    const path = resolve(dirname(s.memoryFile), name)
    const error = await openStore(path, { readOnly }).catch((error) => error)
    expect(error).toMatchObject({ name: 'ReapTraceError', path })
    expect(error.message).toMatch(message)
    expect(error.hint ?? '').toMatch(hint ?? /^$/)
  })

  test('is not made of a folder with other files', async () => {
    const s = await storeScene()
    await writeFile(join(s.memoryFile, '..', 'other'), '')
    await expect(openStore(join(s.memoryFile, '..'))).rejects.toMatchObject({
      code: 'ERR_STORE_INVALID',
      check: 'store',
    })
  })

  test('goes on with its sets where its evidence is damaged', async () => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    const folder = join(s.folder, 'snapshots', snapshotKey)
    const store = await openStore(s.folder)
    for (const name of ['evidence', 'snapshot.json', 'history.jsonl']) {
      await writeFile(join(folder, name), 'damaged')
    }
    const events: StoreEvent[] = []
    const onEvent = (event: StoreEvent) => void events.push(event)
    await restoreOnce({ ...s, store }, touched, { onEvent })
    const codes = events.flatMap((event) => (event.type === 'warning' ? event.error.code : []))
    expect(new Set(codes)).toEqual(new Set(['ERR_STORE_INVALID']))
    const last = await restoreOnce({ ...s, store }, touched)
    expect(last.handler.stats().prefetched).toBeGreaterThan(90)
  })

  test.each([
    ['its set is removed', (folder: string) => unlink(join(folder, 'common.ws'))],
    ['its set is damaged', (folder: string) => truncate(join(folder, 'common.ws'), 5000)],
    ['its list of sets is lost', (folder: string) => writeFile(join(folder, 'snapshot.json'), '')],
    ['its evidence is lost', (folder: string) => unlink(join(folder, 'evidence'))],
  ])('makes a set again where %s', async (_, harm) => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await harm(join(s.folder, 'snapshots', snapshotKey))
    const store = await openStore(s.folder)
    await restoreOnce({ ...s, store }, touched)
    const healed = await restoreOnce({ ...s, store }, touched)
    expect(await healed.prefetched).toMatchObject({ complete: true, source: 'working-set' })
    expect(healed.handler.stats().prefetched).toBeGreaterThan(90)
    expect(await store.describe(snapshotKey)).toMatchObject({ sets: [{ pageCount: 100 }] })
  })

  test('has one good set after twenty first restores at once', async () => {
    const s = await storeScene()
    const restores = await Promise.all(
      range(0, 20).map((i) => restoreOnce(s, [...touched, 600 + i])),
    )
    expect(new Set(restores.map(({ snapshotKey }) => snapshotKey)).size).toBe(1)
    const known = await s.store.describe(restores[0]!.snapshotKey)
    expect(known).toMatchObject({ restoreCount: 20, sets: [{ variant: undefined }] })
    const last = await restoreOnce(s, touched)
    expect(last.handler.stats().prefetched).toBeGreaterThan(90)
  })

  test('misuse is a TypeError before anything is written', async () => {
    const s = await storeScene()
    // @ts-expect-error
    await expect(openStore(7)).rejects.toThrow(TypeError)
    await expect(openStore(s.folder, { memoryPrice: -1 })).rejects.toThrow(TypeError)
    const socketPath = newPath('socket')
    const wrong = { snapshot: { memoryFile: s.memoryFile, parent: 'x' }, socketPath }
    await expect(s.store.restore(wrong)).rejects.toThrow(/"parent".*16 hexadecimal digits/)
    await expect(s.store.describe('x')).rejects.toThrow(TypeError)
    expect(await readdir(s.folder)).toEqual(['store.json'])
  })
})
