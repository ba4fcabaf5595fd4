import { readFileSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { ReapTraceError } from '../../src/errors.js'
import { WorkingSet } from '../../src/working-set/working-set.js'
import { readSet } from '../support/second-reader.js'
import {
  type DamageCase,
  diskTrace,
  edited,
  failureOf,
  makeDisk,
  makeMemory,
  newPath,
  outcomeOf,
  PAGE,
  setOf,
  u32,
  u64,
} from '../support/working-sets.js'

describe('a file whose disks are not sound', () => {
  const SIZES = [20 * PAGE, 9 * PAGE + 100] as const
  let sound: Buffer
  /** Of the touches of the disks, each 8 bytes, and of the disks, each 512 bytes. */
  let at: { touches: number; disks: number; manifest: number }
  let path: string
  beforeAll(async () => {
    const memoryFile = makeMemory(16)
    const [first, second] = SIZES
    const set = setOf(memoryFile, [5, 2, 3], PAGE, [
      diskTrace(first, [
        [4, 10],
        [5, 10],
        [11, 30],
        [0, 40],
      ]),
      diskTrace(second, [
        [9, 20],
        [4, 30],
      ]),
    ])
    const file = newPath('working-set')
    await set.write(file, { snapshot: { memoryFile, diskImages: SIZES.map(makeDisk) } })
    sound = readFileSync(file)
    const touches =
      PAGE + 32 * sound.readUInt32LE(64) + 16 * sound.readUInt32LE(68) + 8 * sound.readUInt32LE(72)
    const disks = touches + 8 * 6
    at = { touches, disks, manifest: disks + 512 * 2 }
  })
  beforeEach(() => {
    path = newPath('damaged')
  })

  const fill = (offset: number, byte: number) => (bytes: Buffer) => {
    bytes[offset] = byte
  }
  /** Places in a disk and in the touch of a disk: 0 to 3 of the first, 4 and 5 of the second. */
  const disk = (number: number, offset: number) => at.disks + 512 * number + offset
  const touch = (number: number, offset: number) => at.touches + 8 * number + offset

  test.each<DamageCase>([
    ['a newer minor version', 'version', () => 8, () => u32(8, 0x10003)],
    ['version 2.0, which had extents of disks', 'version', () => 8, () => u32(8, 2)],
    ['a reserved byte behind the counts', 'reserved', () => 136, () => fill(136, 1)],
    ['more disks than 16', 'disk-count', () => 128, () => u32(128, 17)],
    ['one disk less', 'index-bytes', () => 48, () => u32(128, 1)],
    ['disk touches without end', 'index-bytes', () => 48, () => u32(132, 2 ** 32 - 1)],
    ['an empty image', 'disk-bytes', () => disk(0, 0), () => u64(disk(0, 0), 0n)],
    [
      'an image larger than there is',
      'disk-bytes',
      () => disk(1, 0),
      () => u64(disk(1, 0), 2n ** 42n + 1n),
    ],
    ['an absurd image', 'disk-bytes', () => disk(1, 0), () => u64(disk(1, 0), 2n ** 64n - 1n)],
    ['17 samples of a disk', 'disk-samples', () => disk(0, 12), () => u32(disk(0, 12), 17)],
    ['no samples of a disk', 'disk-samples', () => disk(0, 12), () => u32(disk(0, 12), 0)],
    ['a sample outside its disk', 'disk-samples', () => disk(0, 16), () => u32(disk(0, 16), 20)],
    ['a sample too many', 'reserved', () => disk(0, 16 + 32), () => u32(disk(0, 16 + 32), 1)],
    ['a disk without a name', 'disk-name', () => disk(0, 144), () => u32(disk(0, 144), 0)],
    ['too long a name', 'disk-name', () => disk(0, 144), () => u32(disk(0, 144), 256)],
    ['a name that is not UTF-8', 'disk-name', () => disk(0, 152), () => fill(disk(0, 152), 0xff)],
    ['a name with a folder', 'disk-name', () => disk(0, 152), () => fill(disk(0, 153), 0x2f)],
    ['a name with a zero byte', 'disk-name', () => disk(0, 152), () => fill(disk(0, 153), 0)],
    ['a reserved field in a disk', 'reserved', () => disk(0, 148), () => fill(disk(0, 148), 1)],
    ['something behind a name', 'reserved', () => disk(0, 511), () => fill(disk(0, 511), 1)],
    ['a touch outside its disk', 'disk-touch-page', () => touch(1, 0), () => u32(touch(1, 0), 20)],
    [
      'a touch far outside its disk',
      'disk-touch-page',
      () => touch(5, 0),
      () => u32(touch(5, 0), 2 ** 32 - 1),
    ],
    ['times that fall', 'disk-touch-order', () => touch(1, 4), () => u32(touch(1, 4), 9)],
    ['a page touched twice', 'disk-touch-twice', () => touch(2, 0), () => u32(touch(2, 0), 5)],
    ['more touches than there are', 'disk-touches', () => disk(1, 8), () => u32(disk(1, 8), 3)],
    ['touches of no disk', 'disk-touches', () => 132, () => u32(disk(1, 8), 1)],
  ])('is refused: %s', async (_, check, offset, edit) => {
    writeFileSync(path, edited(sound, edit()))
    const error = await failureOf(WorkingSet.read(path))
    expect(error).toMatchObject({ code: 'ERR_WORKING_SET_INVALID', check, path })
    expect(error.offset).toBe(offset())
    expect(error.hint).toContain('Record it again')
    expect(() => readSet(path)).toThrow('refused')
  })

  test('is not one whose disk has no pages and no samples', async () => {
    // The touches of the second disk become the first's.
    const emptied = edited(sound, (bytes) => {
      bytes.writeUInt32LE(6, disk(0, 8))
      bytes.fill(0, disk(1, 8), disk(1, 144))
      for (const [number, page] of [12, 13].entries()) {
        bytes.writeUInt32LE(page, touch(4 + number, 0))
        bytes.writeUInt32LE(50, touch(4 + number, 4))
      }
    })
    writeFileSync(path, emptied)
    expect((await WorkingSet.read(path)).disks.map(({ pageCount }) => pageCount)).toEqual([6, 0])
    expect(readSet(path).disks.map(({ samples }) => samples.length)).toEqual([4, 0])
  })

  test('is refused wherever a bit is flipped in the tables of disks', async () => {
    const places = fc.integer({ min: at.touches, max: at.manifest - 1 })
    await fc.assert(
      fc.asyncProperty(places, fc.nat(7), async (place, bit) => {
        const bytes = Buffer.from(sound)
        bytes[place]! ^= 1 << bit
        writeFileSync(path, bytes)
        const error = await failureOf(WorkingSet.read(path))
        expect(error.check).toBe('index-checksum')
      }),
      { numRuns: 60 },
    )
  })

  test('is refused by both readers or by neither, whatever numbers it has where', async () => {
    const interesting = fc.constantFrom(0, 1, 2, 9, 10, 16, 17, 20, 30, 255, 2 ** 31, 2 ** 32 - 1)
    const values = fc.oneof(interesting, fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.nat(60))
    const words = (at.manifest - at.disks) / 4
    const places = fc.oneof(
      fc.constantFrom(8, 128, 132, 136),
      fc.nat(words - 1).map((word) => at.disks + word * 4),
      fc.nat(6 * 2 - 1).map((word) => at.touches + word * 4),
      fc.nat(39).map((word) => disk(word % 2, 4 * (word >> 1))),
    )
    const changes = fc.array(fc.tuple(places, values), { minLength: 1, maxLength: 3 })
    let accepted = 0
    await fc.assert(
      fc.asyncProperty(changes, async (list) => {
        const bytes = edited(sound, (copy) => {
          for (const [place, value] of list) copy.writeUInt32LE(value, place)
        })
        writeFileSync(path, bytes)
        const second = outcomeOf(() => readSet(path))
        const ours = await WorkingSet.read(path).then(
          (set) => (set.disks.length >= 0 ? 'accepted' : ''),
          (error: ReapTraceError) => error.code,
        )
        expect([second, ours]).toEqual(
          second === 'accepted' ? ['accepted', 'accepted'] : ['refused', 'ERR_WORKING_SET_INVALID'],
        )
        if (second === 'accepted') accepted++
      }),
      { numRuns: 400 },
    )
    expect(accepted).toBeGreaterThan(0)
  })
})
