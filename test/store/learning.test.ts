import { afterEach, expect, test, vi } from 'vitest'
import { openFolder } from '../../src/store/folder.js'
import { Learning } from '../../src/store/learning.js'
import { identify } from '../../src/store/snapshot-key.js'
import { range } from '../support/scratch.js'
import { storeScene } from '../support/stores.js'

/** Added to `performance.now()`; each write of a set adds `writeMs`. */
const clock = vi.hoisted(() => ({ ms: 0, writeMs: 0 }))
vi.mock(import('../../src/working-set/file/write.js'), async (original) => {
  const real = await original()
  const writeWorkingSetFile: typeof real.writeWorkingSetFile = async (...given) => {
    const manifest = await real.writeWorkingSetFile(...given)
    clock.ms += clock.writeMs
    return manifest
  }
  return { ...real, writeWorkingSetFile }
})
const now = performance.now.bind(performance)
vi.spyOn(performance, 'now').mockImplementation(() => now() + clock.ms)
afterEach(() => {
  clock.writeMs = 0
})

/** Learning of a snapshot, and a lesson for it. */
async function learningScene() {
  const { folder, memoryFile, memoryPages } = await storeScene()
  const key = '0123456789abcdef'
  const snapshot = (await openFolder(folder, false)).snapshot(key)
  const learning = new Learning(snapshot, async () => undefined, {})
  const at = new Date().toISOString()
  const lesson = {
    ...{ snapshot: { memoryFile }, memoryBytes: memoryPages * 4096, pageSize: 4096, memory: '' },
    line: { at, backend: 'page-cache', recorded: true },
    ...{ observation: undefined, badSet: undefined },
  } as const
  return { learning, lesson, snapshot }
}

test('a lesson that comes as soon as another is saved is learned', async () => {
  const { learning, lesson, snapshot } = await learningScene()
  await learning.add(lesson).then(() => learning.add(lesson))
  expect(await snapshot.readManifest()).toMatchObject({ restoreCount: 2 })
})

test('those who wait for lessons do not wait for later ones', async () => {
  const { learning, lesson } = await learningScene()
  let isOver = false
  const feeds = range(0, 3).map(async () => {
    while (!isOver) await learning.add(lesson)
  })
  await learning.settle()
  isOver = true
  await Promise.all(feeds)
})

test('the writing of a set counts in the time that learning may take', async () => {
  const { learning, lesson, snapshot } = await learningScene()
  const other = await learningScene()
  const batches = vi.spyOn(snapshot, 'readManifest')
  const pages = Uint32Array.from(range(0, 10))
  const observation = { pages, timesUs: pages, heldOut: new Uint32Array(), variant: undefined }
  clock.writeMs = 2000
  const memory = (await identify(lesson.snapshot)).memory
  const first = { ...lesson, memory, observation: { ...observation, prefetched: undefined } }
  expect((await learning.add(first)).written).toHaveLength(1)
  const second = learning.add(lesson)
  // As long as it would take without a pause.
  await other.learning.add(other.lesson)
  expect(batches).toHaveBeenCalledTimes(1)
  await learning.settle()
  await second
  expect(batches).toHaveBeenCalledTimes(2)
})
