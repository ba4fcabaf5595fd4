import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import { beforeAll, beforeEach, describe, expect, test } from 'vitest'
import type { ReapTraceError } from '../../src/errors.js'
import { WorkingSet } from '../../src/working-set/working-set.js'
import { readSet } from '../support/second-reader.js'
import {
  type DamageCase,
  edited,
  failureOf,
  folder,
  makeMemory,
  newPath,
  outcomeOf,
  PAGE,
  u32,
  u64,
  write,
} from '../support/working-sets.js'

describe('a file that is not sound', () => {
  // Groups of 256, 256 and 88 pages; every fifth page of the memory is zero.
  let memoryFile: string
  let sound: Buffer
  let at: { extents: number; touches: number; manifest: number; data: number }
  let path: string
  beforeAll(async () => {
    memoryFile = makeMemory(750, (page) => page % 5 === 0)
    const pages = Array.from({ length: 750 }, (_, i) => (i * 379) % 750)
    sound = readFileSync(await write(memoryFile, pages))
    const extents = PAGE + 32 * sound.readUInt32LE(64)
    const touches = extents + 16 * sound.readUInt32LE(68)
    const manifest = touches + 8 * sound.readUInt32LE(72)
    at = { extents, touches, manifest, data: sound.readUInt32LE(56) }
  })
  beforeEach(() => {
    path = newPath('damaged')
  })

  test.each<DamageCase>([
    ['an older major version', 'version', () => 8, () => u32(8, 2)],
    ['an older one with a minor version', 'version', () => 8, () => u32(8, 0x10002)],
    ['a newer major version', 'version', () => 8, () => u32(8, 4)],
    ['a newer minor version', 'version', () => 8, () => u32(8, 0x10003)],
    ['another header size', 'header-bytes', () => 12, () => u32(12, 8192)],
    ['more touches by writes than touches', 'written-touches', () => 76, () => u32(76, 2 ** 24)],
    ['a reserved byte in use', 'reserved', () => 4095, () => (bytes) => bytes.fill(1, 4095, 4096)],
    ['pages of 8 KiB', 'granule', () => 32, () => u32(32, 8192)],
    ['a guest with 1 GiB pages', 'page-size', () => 36, () => u32(36, 2 ** 30)],
    ['no memory', 'memory-bytes', () => 24, () => u64(24, 0n)],
    ['more memory than there is', 'memory-bytes', () => 24, () => u64(24, 2n ** 63n)],
    ['more memory than a reader maps', 'memory-bytes', () => 24, () => u64(24, 2n ** 42n + 4096n)],
    ['a memory that ends inside a page', 'memory-bytes', () => 24, () => u64(24, 4097n)],
    ['a memory smaller than the set', 'page-count', () => 88, () => u64(24, 4096n)],
    ['a size that is not its own', 'file-bytes', () => 16, () => u64(16, 8192n)],
    ['an absurd size', 'truncated', () => sound.length, () => u64(16, 2n ** 64n - 1n)],
    ['an index elsewhere', 'index-offset', () => 40, () => u64(40, 8192n)],
    ['an absurd index', 'index-bytes', () => 48, () => u64(48, 2n ** 60n)],
    ['absurd counts', 'index-bytes', () => 48, () => (bytes) => bytes.fill(0xff, 64, 76)],
    ['no runs', 'runs', () => 80, () => u32(80, 0)],
    ['too long a manifest', 'manifest-bytes', () => 84, () => u32(84, 2 ** 31)],
    ['data in the index', 'data-offset', () => 56, () => u64(56, 4096n)],
    ['data not aligned', 'data-offset', () => 56, () => u64(56, BigInt(at.data + 1))],
    ['more data than it has', 'data-offset', () => 56, () => u64(88, 10_000n)],
    ['data pages without end', 'data-offset', () => 56, () => u64(88, 2n ** 64n - 1n)],
    ['more zero pages than were touched', 'page-count', () => 88, () => u64(96, 151n)],
    ['group data elsewhere', 'group-data', () => PAGE + 32, () => u64(PAGE + 32, 0n)],
    ['too large a group', 'group-data', () => PAGE + 8, () => u32(PAGE + 8, (1 << 20) + PAGE)],
    ['half a page in a group', 'group-data', () => PAGE + 8, () => u32(PAGE + 8, 2048)],
    ['less data than a group needs', 'group-data', () => PAGE + 8, () => u32(PAGE + 8, 255 * PAGE)],
    ['a group that shares extents', 'group-extents', () => PAGE + 44, () => u32(PAGE + 44, 0)],
    ['a group without extents', 'group-extents', () => PAGE + 12, () => u32(PAGE + 16, 0)],
    [
      'a group with all extents and more',
      'group-extents',
      () => PAGE + 12,
      () => u32(PAGE + 16, 2 ** 32 - 1),
    ],
    ['ranks that do not follow', 'group-rank', () => PAGE + 56, () => u32(PAGE + 56, 0)],
    ['a reserved field in a group', 'reserved', () => PAGE + 28, () => u32(PAGE + 28, 1)],
    ['an empty extent', 'extent-pages', () => at.extents, () => u32(at.extents + 4, 0)],
    [
      'an extent outside the memory',
      'extent-pages',
      () => at.extents,
      () => u32(at.extents + 4, 2 ** 32 - 1),
    ],
    [
      'an extent before the one before',
      'extent-order',
      () => at.extents + 16,
      () => u32(at.extents + 16, 0),
    ],
    ['an unknown flag', 'extent-flags', () => at.extents + 12, () => u32(at.extents + 12, 2)],
    ['a rank of another extent', 'extent-rank', () => at.extents, () => u32(at.extents + 8, 255)],
    ['a rank of another group', 'extent-rank', () => at.extents, () => u32(at.extents + 8, 700)],
    [
      'a page outside the memory touched',
      'extent-touches',
      () => at.touches,
      () => u32(at.touches, 750),
    ],
    [
      'a manifest that is not JSON',
      'manifest',
      () => at.manifest,
      () => (bytes) => bytes.fill('x', at.manifest, at.manifest + 1),
    ],
    [
      'a manifest that is not UTF-8',
      'manifest',
      () => at.manifest,
      () => (bytes) => bytes.fill(0xff, at.manifest + 2, at.manifest + 3),
    ],
  ])('is refused: %s', async (_, check, offset, edit) => {
    writeFileSync(path, edited(sound, edit()))
    const error = await failureOf(WorkingSet.read(path))
    expect(error).toMatchObject({ code: 'ERR_WORKING_SET_INVALID', check, path })
    expect(error.offset).toBe(offset())
    expect(error.message).toContain(path)
    expect(error.hint).toContain('Record it again')
    expect(() => readSet(path)).toThrow()
  })

  test('is refused: a manifest that is no object, or has a member that is no string', async () => {
    for (const json of ['[]', '"text"', 'null', '{"label":1}', '{"snapshotId":1}']) {
      const text = json.padEnd(sound.readUInt32LE(84))
      writeFileSync(
        path,
        edited(sound, (bytes) => void bytes.write(text, at.manifest)),
      )
      expect(await failureOf(WorkingSet.read(path))).toMatchObject({ check: 'manifest' })
    }
  })

  test('is refused: two extents with the same page, and the touches to match', async () => {
    const memory = makeMemory(600)
    const bytes = readFileSync(
      await write(
        memory,
        Array.from({ length: 512 }, (_, i) => i),
      ),
    )
    writeFileSync(
      path,
      edited(bytes, (copy) => {
        // Both groups have one extent of 256 pages; the second becomes the first again.
        const extents = PAGE + 64
        copy.writeUInt32LE(0, extents + 16)
        const touches = extents + 32
        copy.copy(copy, touches + 256 * 8, touches, touches + 256 * 8)
      }),
    )
    const error = await failureOf(WorkingSet.read(path))
    expect(error).toMatchObject({ check: 'extent-overlap', offset: PAGE + 64 + 16 })
    expect(() => readSet(path)).toThrow('touched once')
  })

  test.each<[string, () => Buffer | string, string, number]>([
    ['nothing in it', () => '', 'magic', 0],
    ['text in it', () => 'hello\n'.repeat(2000), 'magic', 0],
    ['half a header', () => sound.subarray(0, 2000), 'truncated', 2000],
    ['only a header', () => sound.subarray(0, PAGE), 'truncated', PAGE],
    ['a wrong header checksum', () => flip(sound, 30), 'header-checksum', 124],
    ['a wrong index checksum', () => flip(sound, PAGE + 500), 'index-checksum', 120],
  ])('is refused: a file with %s', async (_, bytes, check, offset) => {
    writeFileSync(path, bytes())
    const error = await failureOf(WorkingSet.read(path))
    expect(error).toMatchObject({ code: 'ERR_WORKING_SET_INVALID', check, offset })
  })

  test('is refused: a folder, a device, and a pipe without waiting for a writer', async () => {
    expect(await failureOf(WorkingSet.read(folder))).toMatchObject({ check: 'regular-file' })
    expect(await failureOf(WorkingSet.read('/dev/null'))).toMatchObject({ check: 'regular-file' })
    execFileSync('mkfifo', [path])
    expect(await failureOf(WorkingSet.read(path))).toMatchObject({ check: 'regular-file' })
  })

  test('is refused wherever it was cut', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(sound.length - 1), async (length) => {
        writeFileSync(path, sound.subarray(0, length))
        expect((await failureOf(WorkingSet.read(path))).code).toBe('ERR_WORKING_SET_INVALID')
      }),
      { numRuns: 60 },
    )
  })

  test('never gives a wrong page, whichever bit is flipped', async () => {
    const lengths = [128, PAGE, at.manifest, at.data, sound.length]
    const places = fc.oneof(...lengths.map((length) => fc.nat(length - 1)))
    await fc.assert(
      fc.asyncProperty(places, fc.nat(7), async (place, bit) => {
        writeFileSync(path, flip(sound, place, bit))
        const set = await WorkingSet.read(path).catch((error: ReapTraceError) => error)
        if (place < at.manifest) expect(set).toBeInstanceOf(Error)
        if (set instanceof WorkingSet) {
          const result = await set.verify({ memoryFile }).catch((error: ReapTraceError) => error)
          if (place >= at.data) expect(result).toMatchObject({ check: 'group-checksum' })
          else expect(result).toMatchObject({ identical: true })
        } else {
          expect(set).toMatchObject({ code: 'ERR_WORKING_SET_INVALID', path })
        }
      }),
      { numRuns: 150 },
    )
  })

  test('is refused by both readers or by neither, whatever number it has where', async () => {
    const interesting = fc.constantFrom(
      0,
      1,
      255,
      256,
      511,
      512,
      749,
      750,
      4096,
      2 ** 31,
      2 ** 32 - 1,
    )
    const values = fc.oneof(interesting, fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.nat(800))
    const places = fc.oneof(
      fc.nat(31),
      fc.nat(55).map((i) => 1024 + i),
      fc.nat(4000).map((i) => 1024 + i),
    )
    let accepted = 0
    await fc.assert(
      fc.asyncProperty(places, values, async (word, value) => {
        const place = word * 4
        fc.pre(place < at.manifest && (place < 128 || place >= PAGE))
        const bytes = edited(sound, u32(place, value))
        writeFileSync(path, bytes)
        const second = outcomeOf(() => readSet(path))
        const ours = await WorkingSet.read(path)
          .then((set) => set.verify({ memoryFile }))
          .then(
            () => 'accepted',
            (error: ReapTraceError) =>
              error.code === 'ERR_SNAPSHOT_MISMATCH' ? 'accepted' : error.code,
          )
        expect([second, ours]).toEqual(
          second === 'accepted' ? ['accepted', 'accepted'] : ['refused', 'ERR_WORKING_SET_INVALID'],
        )
        if (second === 'accepted') accepted++
      }),
      { numRuns: 200 },
    )
    expect(accepted).toBeGreaterThan(0)
  })
})

function flip(sound: Buffer, place: number, bit = 0): Buffer {
  const bytes = Buffer.from(sound)
  bytes[place]! ^= 1 << bit
  return bytes
}
