import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { mergeWorkingSets } from '../../src/working-set/merge-sets.js'
import { WorkingSet } from '../../src/working-set/working-set.js'
import {
  diskTrace,
  makeDisk,
  makeMemory,
  newPath,
  PAGE,
  setOf,
  write,
} from '../support/working-sets.js'

const pagesOf = (set: WorkingSet) => [...set.order.pages]

describe('working sets that are merged', () => {
  test('keep the pages of all sets, or of as many as asked for, in the order of their ranks', () => {
    const memoryFile = makeMemory(64)
    const sets = [
      [1, 2, 3],
      [1, 3, 9],
      [1, 9, 4],
    ].map((pages) => setOf(memoryFile, pages))
    expect(pagesOf(mergeWorkingSets(sets))).toEqual([1])
    expect(pagesOf(mergeWorkingSets(sets, { minSets: 2 }))).toEqual([1, 3, 9])
    expect(pagesOf(mergeWorkingSets(new Set(sets), { minSets: 1 })).sort()).toEqual([1, 2, 3, 4, 9])
  })

  test('count their runs, and are written with the bytes of the memory file', async () => {
    const memoryFile = makeMemory(64, (page) => page === 9)
    const first = WorkingSet.fromTraces([
      setOf(memoryFile, [1, 5]).order,
      setOf(memoryFile, [5, 1]).order,
    ])
    const second = await WorkingSet.read(await write(memoryFile, [9, 5]))
    const merged = mergeWorkingSets([first, second], { minSets: 1 })
    expect(merged).toMatchObject({ runCount: 3, pageCount: 3, pageSize: PAGE, manifest: undefined })
    const path = newPath('merged.ws')
    await merged.write(path, { snapshot: { memoryFile } })
    const back = await WorkingSet.read(path)
    expect(back.runCount).toBe(3)
    expect(await back.verify({ memoryFile })).toMatchObject({ identical: true, pageCount: 3 })
  })

  test('keep the pages of disk images by the same rule', async () => {
    const [memoryFile, image, path] = [makeMemory(64), makeDisk(9 * PAGE - 1), newPath('disks.ws')]
    const bytes = readFileSync(image).length
    const [a, b] = [
      [
        [3, 5],
        [4, 9],
      ],
      [
        [4, 1],
        [7, 8],
      ],
    ].map((touches) =>
      setOf(memoryFile, [1], PAGE, [diskTrace(bytes, touches as [number, number][])]),
    )
    await a!.write(path, { snapshot: { memoryFile, diskImages: [image] } })
    // One from a file knows the image's size, the other that of its pages.
    const sets = [await WorkingSet.read(path), b!]
    expect(mergeWorkingSets(sets).disks).toMatchObject([
      { pageCount: 1, extents: [{ firstPage: 4, pageCount: 1, timeUs: 1 }] },
    ])
    expect(mergeWorkingSets(sets, { minSets: 1 }).disks).toMatchObject([{ pageCount: 3 }])
    expect(() => mergeWorkingSets([a!, setOf(memoryFile, [1])])).toThrow(
      expect.objectContaining({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'disks' }),
    )
  })

  test('are refused if they cannot be of one snapshot', () => {
    const sets = [setOf(makeMemory(64), [1]), setOf(makeMemory(32), [1])]
    expect(() => mergeWorkingSets(sets)).toThrow(
      expect.objectContaining({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' }),
    )
  })

  test('are working sets, at least one, and minSets is at most their number', () => {
    const set = setOf(makeMemory(64), [1])
    expect(() => mergeWorkingSets([])).toThrow('expects at least one working set, got none')
    expect(() => mergeWorkingSets('vm.ws' as never)).toThrow('an array of working sets')
    expect(() => mergeWorkingSets([set.order as never])).toThrow('working sets, got Trace')
    for (const minSets of [0, 2, 1.5]) {
      expect(() => mergeWorkingSets([set], { minSets })).toThrow(TypeError)
    }
    expect(() => mergeWorkingSets([set], { minRuns: 1 } as never)).toThrow('no option "minRuns"')
  })
})
