import { execFileSync, spawnSync } from 'node:child_process'
import { chmod, mkdir, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { tryLock } from '../../src/binding/lock.js'
import { openStore, type ReapTraceError, type StoreEvent } from '../../src/index.js'
import { fakeVmm, range } from '../support/scratch.js'
import { restoreOnce, storeScene } from '../support/stores.js'
import { newPath } from '../support/working-sets.js'

const touched = range(100, 100)

/** Warnings of restores. */
function warnings() {
  const errors: ReapTraceError[] = []
  const onEvent = (event: StoreEvent) => {
    if (event.type === 'warning') errors.push(event.error)
  }
  return { errors, onEvent }
}

test('a full disk costs the set and no restore, until there is space', async ({ skip }) => {
  const s = await storeScene()
  const folder = newPath('small')
  await mkdir(folder, { mode: 0o700 })
  const mount = (...words: string[]) => spawnSync('mount', [...words, folder]).status
  const mounted = mount('-t', 'tmpfs', '-o', 'size=128k,mode=0700', 'tmpfs')
  if (mounted !== 0) skip('needs the right to mount a tmpfs')
  onTestFinished(() => void execFileSync('umount', ['--lazy', folder]))
  const store = await openStore(folder)
  const { errors, onEvent } = warnings()
  const first = await restoreOnce({ ...s, store }, touched, { onEvent })
  expect(await first.learned).toMatchObject({ written: [] })
  expect(errors).toMatchObject([{ code: 'ERR_WORKING_SET_IO', errno: -28 }])
  expect(await store.describe(first.snapshotKey)).toMatchObject({ restoreCount: 1, sets: [] })

  expect(mount('-o', 'remount,size=8m')).toBe(0)
  await restoreOnce({ ...s, store }, touched)
  const third = await restoreOnce({ ...s, store }, touched)
  expect(third.handler.stats().prefetched).toBeGreaterThan(90)
})

test.each(['evidence', 'snapshot.json', 'common.ws'])(
  'a file that others may write to is not used, and no restore fails of it: %s',
  async (name) => {
    const s = await storeScene()
    const { snapshotKey } = await restoreOnce(s, touched)
    await chmod(join(s.folder, 'snapshots', snapshotKey, name), 0o666)
    const store = await openStore(s.folder)
    const { errors, onEvent } = warnings()
    await restoreOnce({ ...s, store }, touched, { onEvent })
    expect(errors[0]).toMatchObject({ code: 'ERR_UNTRUSTED_FILE', check: 'mode' })
  },
)

test('a memory file that is gone before the set is written leaves the evidence', async () => {
  const s = await storeScene()
  const { errors, onEvent } = warnings()
  const vmm = await fakeVmm()
  await vmm.map(4096, s.memoryPages * 4096)
  const [socketPath, moved] = [newPath('socket'), newPath('moved')]
  const snapshot = { memoryFile: s.memoryFile, id: 'build 7' }
  const restored = await s.store.restore({ snapshot, socketPath, backend: 'uffd', onEvent })
  onTestFinished(() => restored.close())
  await vmm.handshake(socketPath)
  await vmm.read(...touched)
  await rename(s.memoryFile, moved)
  await restored.ready()
  expect(await restored.learned).toMatchObject({ written: [] })
  expect(errors).toMatchObject([{ code: 'ERR_SOURCE_READ', path: s.memoryFile }])
  await rename(moved, s.memoryFile)
  await restoreOnce(s, touched, { snapshot })
  const third = await restoreOnce(s, touched, { snapshot })
  expect(third.handler.stats().prefetched).toBeGreaterThan(90)
})

test('a lock that another process holds delays what is learned, and no restore', async () => {
  const s = await storeScene()
  const { snapshotKey } = await restoreOnce(s, touched)
  const lock = (await tryLock(join(s.folder, 'snapshots', snapshotKey, 'lock')))!
  let isLearned = false
  const onEvent = ({ type }: StoreEvent) => {
    if (type === 'learned') isLearned = true
  }
  const restoring = restoreOnce(s, touched, { onEvent })
  await expect.poll(() => s.store.describe(snapshotKey)).toMatchObject({ restoreCount: 1 })
  const other = await openStore(s.folder, { readOnly: true })
  const meanwhile = await restoreOnce({ ...s, store: other }, touched)
  expect(meanwhile.handler.stats().prefetched).toBeGreaterThan(90)
  expect(isLearned).toBe(false)
  lock.release()
  await restoring
  expect(await s.store.describe(snapshotKey)).toMatchObject({ restoreCount: 2 })
})

test('a file that others may write to is not imported unless it is trusted, nor is a pipe', async () => {
  const s = await storeScene()
  const { snapshotKey } = await restoreOnce(s, touched)
  const file = newPath('evidence')
  await s.store.export(snapshotKey, file)
  await chmod(file, 0o666)
  const store = await openStore(newPath('store'))
  const snapshot = { memoryFile: s.memoryFile }
  await expect(store.import(file, snapshot)).rejects.toMatchObject({
    code: 'ERR_UNTRUSTED_FILE',
    hint: expect.stringContaining('trust: true'),
  })
  expect(await store.snapshots()).toEqual([])
  const pipe = newPath('pipe')
  execFileSync('mkfifo', ['-m', '600', pipe])
  await expect(store.import(pipe, snapshot)).rejects.toMatchObject({ code: 'ERR_STORE_INVALID' })
  expect(await store.import(file, snapshot, { trust: true })).toBe(snapshotKey)
  // @ts-expect-error
  await expect(store.import(file, snapshot, { trust: 1 })).rejects.toThrow(TypeError)
})
