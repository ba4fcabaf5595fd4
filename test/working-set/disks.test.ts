import { readFileSync, statSync, truncateSync } from 'node:fs'
import { basename, join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { Snapshot } from '../../src/snapshot/snapshot.js'
import { dataOffsetFor, shortName } from '../../src/working-set/file/format.js'
import { internalsOf } from '../../src/working-set/internals.js'
import { Trace, WorkingSet } from '../../src/working-set/working-set.js'
import { crc32cOf, placeDiskSamples, readSet } from '../support/second-reader.js'
import {
  diskTrace,
  failureOf,
  folder,
  makeDisk,
  makeMemory,
  newPath,
  PAGE,
  setOf,
} from '../support/working-sets.js'

/** A trace of the memory, which these tests have no eye on. */
const memoryTrace = () =>
  new Trace({
    pageSize: PAGE,
    memoryBytes: 16 * PAGE,
    pages: Uint32Array.of(3, 1),
    timesUs: Uint32Array.of(0, 9),
  })

/** The working set of one run with these disks, written and read. */
async function written(images: readonly string[], traces: readonly Trace[]) {
  const memoryFile = makeMemory(16)
  const set = setOf(memoryFile, [3, 1], PAGE, traces)
  const path = newPath('working-set')
  await set.write(path, { snapshot: { memoryFile, diskImages: images } })
  return { set, path, memoryFile, back: await WorkingSet.read(path) }
}

/** Page and time of each touch, all disks in turn. */
function touchesOf(set: WorkingSet): number[][] {
  const { diskTouches } = internalsOf(set)
  return Array.from({ length: diskTouches.length / 2 }, (_, i) => [
    diskTouches[2 * i]!,
    diskTouches[2 * i + 1]!,
  ])
}

/** The 4096 bytes of a page of a disk image, with zeros where the image ends inside it. */
function pageOf(image: Buffer, page: number): Buffer {
  const bytes = Buffer.alloc(PAGE)
  image.copy(bytes, 0, page * PAGE, (page + 1) * PAGE)
  return bytes
}

describe('the disks of a working set', () => {
  test('have extents of neighbours that were seen at the same time, all in the order of time', () => {
    const set = setOf(makeMemory(16), [3], PAGE, [
      diskTrace(32 * PAGE, [
        [9, 50],
        [5, 20],
        [4, 20],
        [6, 20],
        [8, 20],
        [7, 30],
      ]),
      diskTrace(16 * PAGE, [
        [1, 20],
        [2, 10],
      ]),
    ])
    expect(set.disks).toEqual([
      {
        name: undefined,
        bytes: 32 * PAGE,
        pageCount: 6,
        extents: [
          { firstPage: 4, pageCount: 3, timeUs: 20 },
          { firstPage: 8, pageCount: 1, timeUs: 20 },
          { firstPage: 7, pageCount: 1, timeUs: 30 },
          { firstPage: 9, pageCount: 1, timeUs: 50 },
        ],
      },
      {
        name: undefined,
        bytes: 16 * PAGE,
        pageCount: 2,
        extents: [
          { firstPage: 2, pageCount: 1, timeUs: 10 },
          { firstPage: 1, pageCount: 1, timeUs: 20 },
        ],
      },
    ])
    expect(touchesOf(set)).toEqual([
      [4, 20],
      [5, 20],
      [6, 20],
      [8, 20],
      [7, 30],
      [9, 50],
      [2, 10],
      [1, 20],
    ])
    expect(Object.isFrozen(set.disks)).toBe(true)
  })

  test('are none, and are not described, without traces of disks', () => {
    const set = WorkingSet.fromTraces([memoryTrace()])
    expect(set.disks).toEqual([])
    expect(set.describe()).not.toHaveProperty('disks')
    expect(touchesOf(set)).toEqual([])
  })

  test('have what every run read, unless minRuns is lower, at the median of its times', () => {
    const size = 16 * PAGE
    const runs = [
      [diskTrace(size, [[1, 10]]), diskTrace(size, [])],
      [
        diskTrace(size, [
          [1, 30],
          [2, 40],
        ]),
        diskTrace(size, [[5, 1]]),
      ],
      [diskTrace(size, [[1, 20]]), diskTrace(size, [[5, 3]])],
    ] as const
    const disks = [runs.map(([one]) => one), runs.map(([, other]) => other)]
    const make = (minRuns?: number) =>
      WorkingSet.fromTraces(
        runs.map(() => memoryTrace()),
        { minRuns, disks },
      )
    expect(touchesOf(make())).toEqual([[1, 20]])
    expect(touchesOf(make(2)).map(String)).toEqual(['1,20', '5,1'])
    expect(touchesOf(make(1)).map(String)).toEqual(['1,20', '2,40', '5,1'])
  })

  test('come back as they were, with the names and sizes of their images', async () => {
    const images = [makeDisk(20 * PAGE), makeDisk(5 * PAGE + 1)]
    const traces = [
      diskTrace(20 * PAGE, [
        [7, 5],
        [3, 9],
      ]),
      diskTrace(5 * PAGE + 1, [[5, 7]]),
    ]
    const { set, path, back } = await written(images, traces)
    expect(back.disks).toEqual(
      set.disks.map((disk, i) => ({
        ...disk,
        name: basename(images[i]!),
        bytes: statSync(images[i]!).size,
      })),
    )
    expect(touchesOf(back)).toEqual(touchesOf(set))
    expect(back.order).toEqual(set.order)
    expect(back.describe().disks).toEqual([
      { name: basename(images[0]!), bytes: 20 * PAGE, pageCount: 2, extentCount: 2 },
      { name: basename(images[1]!), bytes: 5 * PAGE + 1, pageCount: 1, extentCount: 1 },
    ])
    expect(
      internalsOf(back).file!.disks.map(({ bytes, samples }) => [bytes, [...samples.pages]]),
    ).toEqual([
      [20 * PAGE, [7, 3]],
      [5 * PAGE + 1, [5]],
    ])
    expect(readSet(path).version).toBe('3.0')
  })

  test('are of the same version when there are none, with nothing where disks would be', async () => {
    const { path, back } = await written([], [])
    const bytes = readFileSync(path)
    expect(bytes.subarray(128, PAGE).every((byte) => byte === 0)).toBe(true)
    expect(back.disks).toEqual([])
    expect(readSet(path)).toMatchObject({ version: '3.0', disks: [] })
  })

  test('go into the next file when a set that was read is written', async () => {
    const image = makeDisk(9 * PAGE + 7)
    const trace = diskTrace(9 * PAGE + 7, [
      [9, 1],
      [0, 2],
    ])
    const { back, memoryFile } = await written([image], [trace])
    const path = newPath('again')
    await back.write(path, { snapshot: { memoryFile, diskImages: [image] } })
    expect((await WorkingSet.read(path)).disks).toEqual(back.disks)
  })

  test('may be 16, and one that nobody read from has no samples', async () => {
    const images = Array.from({ length: 16 }, () => makeDisk(PAGE))
    const traces = images.map((_, i) => diskTrace(PAGE, i === 3 ? [] : [[0, i]]))
    const { back, path } = await written(images, traces)
    expect(back.disks.map(({ pageCount }) => pageCount)).toEqual(
      images.map((_, i) => (i === 3 ? 0 : 1)),
    )
    expect(readSet(path).disks[3]).toMatchObject({ pages: 0, samples: [] })
  })

  test('are the same to a second reader, written from the specification', async () => {
    const size = 40 * PAGE - 1000
    const touches = fc.uniqueArray(fc.tuple(fc.nat(39), fc.nat(30)), {
      selector: ([page]) => page,
      maxLength: 40,
    })
    const images = [makeDisk(size), makeDisk(40 * PAGE)]
    await fc.assert(
      fc.asyncProperty(touches, touches, async (...lists) => {
        const { back, path } = await written(
          images,
          images.map((image, i) => diskTrace(statSync(image).size, lists[i]!)),
        )
        const read = readSet(path)
        expect(read.disks.flatMap(({ touches }) => touches.map(Object.values))).toEqual(
          touchesOf(back),
        )
        images.forEach((image, i) => {
          const order = [...lists[i]!].sort(([a, at], [b, bt]) => at - bt || a - b)
          const { samples, touches, ...facts } = read.disks[i]!
          expect(touches.map(({ page, timeUs }) => [page, timeUs])).toEqual(order)
          const bytes = readFileSync(image)
          expect(facts).toEqual({
            bytes: bytes.length,
            pages: order.length,
            name: basename(image),
          })
          expect(samples.map(({ page }) => page)).toEqual(
            placeDiskSamples(order.map(([page]) => page)),
          )
          for (const { page, checksum } of samples) {
            expect(crc32cOf(pageOf(bytes, page))).toBe(checksum)
          }
        })
      }),
      { numRuns: 40 },
    )
  })
})

describe('the name of a disk image', () => {
  test('is cut between two characters when it is too long', () => {
    expect(shortName('root.ext4')).toBe('root.ext4')
    expect(shortName(`${'x'.repeat(254)}é`)).toBe('x'.repeat(254))
    expect(shortName(`${'x'.repeat(253)}éé`)).toBe(`${'x'.repeat(253)}é`)
  })
})

describe('writing a set with disks', () => {
  const SIZE = 8 * PAGE
  const set = () => setOf(makeMemory(16), [1], PAGE, [diskTrace(SIZE, [[2, 1]])])

  test('refuses an image of another size, but for a part of its last page', async () => {
    const memoryFile = makeMemory(16)
    for (const bytes of [SIZE + 1, SIZE - PAGE, 0]) {
      const image = makeDisk(SIZE)
      truncateSync(image, bytes)
      const path = newPath('set')
      const error = await failureOf(
        set().write(path, { snapshot: { memoryFile, diskImages: [image] } }),
      )
      expect(error).toMatchObject({ code: 'ERR_SNAPSHOT_MISMATCH', check: 'size', path: image })
      expect(error.message).toContain(`${SIZE}`)
      expect(() => statSync(path)).toThrow('ENOENT')
    }
    const image = makeDisk(SIZE - PAGE + 1)
    const path = newPath('set')
    await set().write(path, { snapshot: { memoryFile, diskImages: [image] } })
    expect((await WorkingSet.read(path)).disks[0]!.bytes).toBe(SIZE - PAGE + 1)
  })

  test('says what is wrong with an image', async () => {
    const memoryFile = makeMemory(16)
    for (const [image, details] of [
      [folder, { check: 'regular-file' }],
      [join(folder, 'none'), { errno: -2 }],
    ] as const) {
      const error = await failureOf(
        set().write(newPath('set'), { snapshot: { memoryFile, diskImages: [image] } }),
      )
      expect(error).toMatchObject({ code: 'ERR_SOURCE_READ', path: image, ...details })
      expect(error.message).toContain('disk image')
    }
  })

  test('refuses to replace a disk image', async () => {
    const image = makeDisk(SIZE)
    const bytes = readFileSync(image)
    await expect(
      set().write(`${folder}/./${basename(image)}`, {
        snapshot: { memoryFile: makeMemory(16), diskImages: [image] },
      }),
    ).rejects.toThrow(TypeError)
    expect(readFileSync(image).equals(bytes)).toBe(true)
  })

  test('counts the tables of disks for the limit of the index', () => {
    const indexOf = (touches: number) => dataOffsetFor(1, touches, 1, 0)
    const max = (2 ** 28 - 512 - 48) / 8
    expect(indexOf(max)).toBe(PAGE + 2 ** 28)
    expect(() => indexOf(max + 1)).toThrow('and those of its disks, is too large')
  })

  test.each<[string, Partial<Snapshot>, string]>([
    ['no images', {}, 'Expected 1 diskImages in the snapshot of WorkingSet.write()'],
    ['one too many', { diskImages: ['a', 'b'] }, "one for each of the set's disks, got 2"],
    ['an empty path', { diskImages: [''] }, '"diskImages"'],
    ['a path instead of a list', { diskImages: 'a' as never }, '"diskImages"'],
  ])('is a TypeError before anything is opened: %s', async (_, images, sentence) => {
    const work = set().write('/nowhere/set', { snapshot: { memoryFile: 'm', ...images } })
    const error = await work.catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(TypeError)
    expect((error as Error).message).toContain(sentence)
  })

  test('is a TypeError with images and no disks', async () => {
    const memoryFile = makeMemory(16)
    const work = setOf(memoryFile, [1]).write(newPath('set'), {
      snapshot: { memoryFile, diskImages: ['a'] },
    })
    await expect(work).rejects.toThrow(TypeError)
    await expect(work).rejects.toThrow('Expected 0 diskImages')
  })
})

describe('misuse of traces of disks', () => {
  const huge = new Trace({
    pageSize: 2097152,
    memoryBytes: 2097152,
    pages: new Uint32Array(),
    timesUs: new Uint32Array(),
  })
  const one = diskTrace(PAGE, [])
  test.each<[string, unknown, string]>([
    ['no list', one, '"disks"'],
    ['no list of lists', [one], '"disks"'],
    ['17 disks', Array(17).fill([one, one]), 'up to 16'],
    ['a trace too few', [[one]], 'disk 0 for each of 2 runs, got 1'],
    ['a disk without traces', [[one, one], []], 'disk 1 for each of 2 runs, got 0'],
    ['things that are no traces', [[one, {}]], '"pageSize" of Trace'],
    ['pages of 2 MiB', [[huge, huge]], 'pages of 4096 bytes, got 2097152'],
    ['two sizes', [[one, diskTrace(2 * PAGE, [])]], 'got memoryBytes 4096 and 8192'],
  ])('is a TypeError: %s', (_, disks, sentence) => {
    const use = () =>
      WorkingSet.fromTraces([memoryTrace(), memoryTrace()], { disks: disks as never })
    expect(use).toThrow(TypeError)
    expect(use).toThrow(sentence)
  })
})
