import { appendFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { WorkingSet } from '../../src/working-set/working-set.js'
import { asNobody, evict, nobodyMissing, readableToAll, readPages } from '../support/page-cache.js'
import { failureOf, makeMemory, PAGE, setOf, write } from '../support/working-sets.js'

const nothing = { readCount: 0, readBytes: 0, estimatedMs: 0, sample: undefined }

describe('the cost of reading a working set', () => {
  it('is nothing if its bytes are in the page cache', async () => {
    const memoryFile = makeMemory(64, (page) => page === 9)
    const set = await WorkingSet.read(await write(memoryFile, [3, 4, 9]))
    const bytes = 2 * PAGE
    expect(await set.readCost(memoryFile)).toEqual({
      workingSet: { bytes, cachedBytes: bytes, ...nothing },
      memoryFile: { bytes: 3 * PAGE, cachedBytes: 3 * PAGE, ...nothing },
    })
    expect(await set.readCost()).toMatchObject({ memoryFile: undefined })
  })

  it('is a read per group of the file, and per missing extent of the memory file', async (test) => {
    const memoryFile = makeMemory(2048)
    const pages = Array.from({ length: 600 }, (_, i) => 3 * i)
    const path = await write(memoryFile, pages)
    const set = await WorkingSet.read(path)
    await evict(path, memoryFile)
    const cold = await set.readCost(memoryFile)
    if (cold.memoryFile!.cachedBytes !== 0) test.skip('needs a folder that is not in memory')
    const bytes = 600 * PAGE
    expect(cold.workingSet).toMatchObject({ bytes, readCount: 3, readBytes: bytes })
    expect(cold.memoryFile).toMatchObject({ bytes, readCount: 600, readBytes: bytes })
    for (const cost of [cold.workingSet!, cold.memoryFile!]) {
      // Without direct I/O there is no sample.
      if (!cost.sample) continue
      const { readCount, bytes, ms } = cost.sample
      expect(readCount).toBeGreaterThan(0)
      expect(cost.estimatedMs).toBeCloseTo((ms * cost.readBytes) / bytes)
    }
    // Neither has read anything into the page cache.
    expect((await set.readCost(memoryFile)).memoryFile).toMatchObject({ cachedBytes: 0 })

    readPages(memoryFile, [0, 3, 6])
    const { cachedBytes, readCount } = (await set.readCost(memoryFile)).memoryFile!
    expect(cachedBytes).toBeGreaterThanOrEqual(3 * PAGE)
    expect(readCount).toBe(600 - cachedBytes! / PAGE)
  })

  it('is that of the memory file for a set without a file, and for a guest with 2 MiB pages', async () => {
    const memoryFile = makeMemory(1024)
    const expected = { workingSet: undefined, memoryFile: { bytes: 2 * PAGE } }
    expect(await setOf(memoryFile, [3, 4]).readCost(memoryFile)).toMatchObject(expected)
    const huge = await WorkingSet.read(await write(memoryFile, [1], 2 ** 21))
    expect(await huge.readCost(memoryFile)).toMatchObject({
      workingSet: undefined,
      memoryFile: { bytes: 2 ** 21 },
    })
  })

  it('is not known for a set whose file has changed, or for another memory file', async () => {
    const memoryFile = makeMemory(64)
    const path = await write(memoryFile, [3, 4])
    const set = await WorkingSet.read(path)
    expect(await failureOf(set.readCost(makeMemory(32)))).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'size',
    })
    expect(await failureOf(set.readCost('/nowhere'))).toMatchObject({ code: 'ERR_SOURCE_READ' })
    await setOf(memoryFile, [5]).write(path, { snapshot: { memoryFile } })
    expect(await failureOf(set.readCost())).toMatchObject({
      code: 'ERR_WORKING_SET_INVALID',
      check: 'changed',
    })
    appendFileSync(path, 'x')
    expect(await failureOf(set.readCost())).toMatchObject({ code: 'ERR_WORKING_SET_INVALID' })
    await expect(set.readCost('')).rejects.toThrow(TypeError)
  })

  it.skipIf(nobodyMissing())('has no cached part for a user who may not know it', async () => {
    const memoryFile = makeMemory(64)
    const path = await write(memoryFile, [3, 4])
    readableToAll(memoryFile, path)
    const code = `
      const set = await api.WorkingSet.read(args.path, { trust: true })
      return (await set.readCost(args.memoryFile)).memoryFile`
    const cost = await asNobody(code, { path, memoryFile })
    expect(cost).not.toHaveProperty('cachedBytes')
    expect(cost).toMatchObject({ bytes: 2 * PAGE, readCount: 1, readBytes: 2 * PAGE })
  })
})
