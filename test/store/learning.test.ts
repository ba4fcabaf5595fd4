import { expect, test } from 'vitest'
import { openFolder } from '../../src/store/folder.js'
import { Learning } from '../../src/store/learning.js'
import { range } from '../support/scratch.js'
import { storeScene } from '../support/stores.js'

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
