import { closeSync, openSync, renameSync, rmSync, statSync, writeSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { native } from '../../src/binding/addon.js'
import { openSnapshot } from '../../src/working-set/open.js'
import type { WorkingSet } from '../../src/working-set/working-set.js'
import { failureOf, makeMemory, write } from '../support/working-sets.js'

const settled = (path: string) =>
  expect.poll(() => Date.now() - statSync(path).ctimeMs).toBeGreaterThan(200)

/** The set that a restore would be made with. */
async function open(path: string, memoryFile: string): Promise<WorkingSet> {
  const { files, set } = await openSnapshot(memoryFile, path)
  native().closeFiles(files)
  return set!
}

describe('a working-set file that restores open', () => {
  test('is read once for restores of an unchanged file', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    await settled(path)
    const first = await open(path, memoryFile)
    expect(await open(path, memoryFile)).toBe(first)
  })

  test('is read again when another file has taken its place', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    const other = await write(memoryFile, [7, 8, 9, 77])
    await settled(other)
    const first = await open(path, memoryFile)
    renameSync(other, path)
    const second = await open(path, memoryFile)
    expect(second).not.toBe(first)
    expect([...second.order.pages]).toEqual([7, 8, 9, 77])
  })

  test('is refused when its file was damaged in place since it was read', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9, 200])
    await settled(path)
    await open(path, memoryFile)
    const file = openSync(path, 'r+')
    writeSync(file, Buffer.from([0xff]), 0, 1, 4096)
    closeSync(file)
    expect(await failureOf(open(path, memoryFile))).toMatchObject({
      code: 'ERR_WORKING_SET_INVALID',
      check: 'index-checksum',
    })
  })

  test('is not known of a file that is gone', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4])
    await settled(path)
    await open(path, memoryFile)
    rmSync(path)
    expect(await failureOf(open(path, memoryFile))).toMatchObject({ code: 'ERR_WORKING_SET_IO' })
  })

  test('is held against the memory file each time', async () => {
    const memoryFile = makeMemory(300)
    const path = await write(memoryFile, [4, 9])
    await settled(path)
    await open(path, memoryFile)
    const another = makeMemory(301)
    expect(await failureOf(open(path, another))).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'size',
      path: another,
    })
  })
})
