import { closeSync, openSync, renameSync, rmSync, statSync, writeSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { planFor } from '../../src/working-set/plan.js'
import { failureOf, makeMemory, write } from '../support/working-sets.js'

const settled = (path: string) =>
  expect.poll(() => Date.now() - statSync(path).ctimeMs).toBeGreaterThan(200)

describe('the plan of a working-set file', () => {
  test('is read once for restores of an unchanged file', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    await settled(path)
    const first = await planFor(path, memoryFile)
    expect((await planFor(path, memoryFile)).extents).toBe(first.extents)
  })

  test('is read again when another file has taken its place', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    const other = await write(memoryFile, [7, 8, 9, 77])
    await settled(other)
    const first = await planFor(path, memoryFile)
    renameSync(other, path)
    const second = await planFor(path, memoryFile)
    expect(second.extents).not.toBe(first.extents)
    expect(second.extents).toHaveLength(2 * 16)
  })

  test('is refused when its file was damaged in place since it was read', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    await settled(path)
    await planFor(path, memoryFile)
    const file = openSync(path, 'r+')
    writeSync(file, Buffer.from([0xff]), 0, 1, 4096)
    closeSync(file)
    expect(await failureOf(planFor(path, memoryFile))).toMatchObject({
      code: 'ERR_WORKING_SET_INVALID',
      check: 'index-checksum',
    })
  })

  test('is not known of a file that is gone', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4])
    await settled(path)
    await planFor(path, memoryFile)
    rmSync(path)
    expect(await failureOf(planFor(path, memoryFile))).toMatchObject({ code: 'ERR_WORKING_SET_IO' })
  })

  test('is held against the memory file each time', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9])
    await settled(path)
    await planFor(path, memoryFile)
    const another = makeMemory(301)
    expect(await failureOf(planFor(path, another))).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'size',
      path: another,
    })
  })
})
