import { copyFileSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { describe, expect, test, vi } from 'vitest'
import { sampleDiskPages } from '../../src/binding/addon.js'
import { checkDisk, checkSize, statMemoryFile } from '../../src/snapshot/disk-image.js'
import { internalsOf } from '../../src/working-set/internals.js'
import { WorkingSet } from '../../src/working-set/working-set.js'
import {
  diskTrace,
  failureOf,
  folder,
  makeDisk,
  makeMemory,
  newPath,
  PAGE,
  setOf,
  write,
} from '../support/working-sets.js'

vi.mock('../../src/binding/addon.js', async (original) => {
  const native = await original<typeof import('../../src/binding/addon.js')>()
  return { ...native, sampleDiskPages: vi.fn(native.sampleDiskPages) }
})

/** Times tell of a change only when the file was left alone for longer than a clock tick. */
const settled = (image: string) =>
  expect.poll(() => Date.now() - statSync(image).ctimeMs).toBeGreaterThan(200)

describe('the size of a memory file', () => {
  test('is that of the set, or the error names both', async () => {
    const memoryFile = makeMemory(300)
    const { memoryBytes } = await WorkingSet.read(await write(memoryFile, [4]))
    checkSize(memoryFile, Number((await statMemoryFile(memoryFile)).size), memoryBytes)
    truncateSync(memoryFile, 299 * PAGE)
    const cut = Number((await statMemoryFile(memoryFile)).size)
    expect(() => checkSize(memoryFile, cut, memoryBytes)).toThrow(
      expect.objectContaining({
        code: 'ERR_SNAPSHOT_MISMATCH',
        check: 'size',
        path: memoryFile,
        message: expect.stringMatching(`${300 * PAGE} bytes.* has ${299 * PAGE}`),
      }),
    )
  })

  test('is not known of a memory file that is gone', async () => {
    const memoryFile = makeMemory(8)
    rmSync(memoryFile)
    expect(await failureOf(statMemoryFile(memoryFile))).toMatchObject({
      code: 'ERR_SOURCE_READ',
      errno: -2,
      path: memoryFile,
    })
  })
})

describe('the identity of a disk image', () => {
  const calls = () => vi.mocked(sampleDiskPages).mock.calls.length

  /** What a file says of an image of ten pages, the last of them not whole, that was read back to front. */
  async function diskOf(image: string) {
    const bytes = statSync(image).size
    const pages = Array.from({ length: 10 }, (_, i): [number, number] => [9 - i, i])
    const memoryFile = makeMemory(8)
    const path = newPath('working-set')
    const set = setOf(memoryFile, [1], PAGE, [diskTrace(bytes, pages)])
    await set.write(path, { snapshot: { memoryFile, diskImages: [image] } })
    return internalsOf(await WorkingSet.read(path)).file!.disks[0]!
  }
  const SIZE = 9 * PAGE + 100

  test('is its size and content: a copy elsewhere is the same', async () => {
    const image = makeDisk(SIZE)
    const disk = await diskOf(image)
    const copy = newPath('copy.img')
    copyFileSync(image, copy)
    await checkDisk(copy, disk)
  })

  test.each([
    ['of a whole page', 9 * PAGE - 1, 8 * PAGE],
    ['of the page in which it ends', SIZE - 1, 9 * PAGE],
  ])('is refused when a byte %s differs, and the error says which', async (_, byte, offset) => {
    const image = makeDisk(SIZE)
    const disk = await diskOf(image)
    const bytes = readFileSync(image)
    bytes[byte]! ^= 1
    writeFileSync(image, bytes)
    const error = await failureOf(checkDisk(image, disk))
    expect(error).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'sample',
      offset,
      path: image,
    })
    expect(error.message).toContain('disk image')
  })

  test('is refused when the size differs, be it by a byte', async () => {
    const image = makeDisk(SIZE)
    const disk = await diskOf(image)
    truncateSync(image, SIZE + 1)
    const error = await failureOf(checkDisk(image, disk))
    expect(error).toMatchObject({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'size', path: image })
    expect(error.message).toContain(`${SIZE}`)
    expect(error.message).toContain(`${SIZE + 1}`)
  })

  test('is not known of an image that is gone, or no file', async () => {
    const image = makeDisk(SIZE)
    const disk = await diskOf(image)
    rmSync(image)
    const gone = await failureOf(checkDisk(image, disk))
    expect(gone).toMatchObject({ code: 'ERR_SOURCE_READ', errno: -2, path: image })
    expect(gone.message).toContain('disk image')
    expect(await failureOf(checkDisk(folder, disk))).toMatchObject({
      code: 'ERR_SOURCE_READ',
      check: 'regular-file',
      path: folder,
    })
  })

  test('is read once for an image that does not change, and again when it does', async () => {
    const image = makeDisk(SIZE)
    const disk = await diskOf(image)
    await settled(image)
    const before = calls()
    await checkDisk(image, disk)
    await checkDisk(image, await diskOf(image))
    expect(calls()).toBe(before + 2)
    await checkDisk(image, disk)
    expect(calls()).toBe(before + 2)

    const bytes = readFileSync(image)
    bytes[0]! ^= 1
    writeFileSync(image, bytes)
    expect((await failureOf(checkDisk(image, disk))).check).toBe('sample')
  })

  test('takes no page that an image has not', async () => {
    const image = makeDisk(2 * PAGE)
    const beyond = await failureOf(sampleDiskPages(image, Uint32Array.of(0, 2)))
    expect(beyond).toMatchObject({
      code: 'ERR_SOURCE_READ',
      check: 'cut-short',
      offset: 2 * PAGE,
      path: image,
    })
    expect(beyond.message).toContain('the disk image')
    expect(beyond.hint).toContain('A disk image')
  })
})

describe('verify()', () => {
  test('finds each page that differs, of data and of zeros, and no other', async () => {
    const memoryFile = makeMemory(3000, (page) => page % 3 === 0)
    const set = await WorkingSet.read(
      await write(
        memoryFile,
        Array.from({ length: 1000 }, (_, i) => i),
      ),
    )
    const progress: number[] = []
    const first = await set.verify(
      { memoryFile },
      { onProgress: ({ pageCount }) => progress.push(pageCount) },
    )
    expect(first).toEqual({
      pageCount: 1000,
      identical: true,
      mismatchedPageCount: 0,
      mismatches: [],
      remembered: true,
    })
    expect(progress.at(-1)).toBe(1000)

    const bytes = readFileSync(memoryFile)
    for (const page of [3, 500, 2000]) bytes[page * PAGE + 17]! ^= 0x10
    writeFileSync(memoryFile, bytes)
    expect(await set.verify({ memoryFile })).toEqual({
      pageCount: 1000,
      identical: false,
      mismatchedPageCount: 2,
      mismatches: [
        { page: 3, offset: 3 * PAGE },
        { page: 500, offset: 500 * PAGE },
      ],
      remembered: true,
    })
    writeFileSync(memoryFile, Buffer.alloc(3000 * PAGE))
    const result = await set.verify({ memoryFile })
    expect(result.mismatchedPageCount).toBe(666)
    expect(result.mismatches).toHaveLength(16)
  })

  test('can be aborted, and refuses a memory file of another size', async () => {
    const memoryFile = makeMemory(8)
    const set = await WorkingSet.read(await write(memoryFile, [1]))
    const reason = new Error('enough')
    const signal = AbortSignal.abort(reason)
    await expect(set.verify({ memoryFile }, { signal })).rejects.toBe(reason)
    expect((await failureOf(set.verify({ memoryFile: makeMemory(9) }))).code).toBe(
      'ERR_SNAPSHOT_MISMATCH',
    )
  })
})
