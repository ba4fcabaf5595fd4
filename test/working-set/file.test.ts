import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { crc32c } from '../../src/binding/addon.js'
import { dataOffsetFor, encodeHead, encodeManifest } from '../../src/working-set/file/format.js'
import { WorkingSet } from '../../src/working-set/working-set.js'
import { crc32cOf, readSet } from '../support/second-reader.js'
import { makeMemory, newPath, PAGE, pageIn, setOf, write } from '../support/working-sets.js'

describe('a written working set', () => {
  test('comes back as it was', async () => {
    const memoryFile = makeMemory(64)
    const set = setOf(memoryFile, [40, 3, 4, 63, 0, 5])
    const path = newPath('working-set')
    const manifest = await set.write(path, { snapshot: { memoryFile }, label: 'hello' })
    const back = await WorkingSet.read(path)
    expect(back.order).toEqual(set.order)
    expect(back.extents).toEqual(set.extents)
    expect(back).toMatchObject({ pageCount: 6, bytes: 24576, runCount: 1, memoryBytes: 64 * PAGE })
    expect(back.manifest).toEqual(manifest)
    expect(manifest).toMatchObject({ label: 'hello', createdBy: 'reap-trace' })
    expect(back.describe()).toMatchObject({
      file: {
        path,
        fileBytes: statSync(path).size,
        groupCount: 1,
        extentCount: 4,
        dataPageCount: 6,
        zeroPageCount: 0,
      },
    })
  })

  test('has a new id, even with the pages and options of another file', async () => {
    const memoryFile = makeMemory(8)
    const paths = [await write(memoryFile, [1, 2]), await write(memoryFile, [1, 2])]
    const ids = paths.map((path) => Buffer.from(readSet(path).id).toString('hex'))
    expect(new Set(ids).size).toBe(2)
    for (const [i, path] of paths.entries()) {
      const set = await WorkingSet.read(path)
      expect(set.describe().file!.id).toBe(ids[i])
      expect(ids[i]).toMatch(/^[0-9a-f]{32}$/)
    }
  })

  test.each([1, 1024])('keeps the name of its snapshot, of %i characters', async (length) => {
    const id = 'é'.repeat(length)
    const memoryFile = makeMemory(8)
    const path = newPath('working-set')
    const manifest = await setOf(memoryFile, [1]).write(path, {
      snapshot: { memoryFile, id },
    })
    expect(manifest.snapshotId).toBe(id)
    expect(readSet(path).manifest.snapshotId).toBe(id)
    expect((await WorkingSet.read(path)).manifest).toEqual(manifest)
  })

  test('has no name of a snapshot that nobody gave', async () => {
    expect((await WorkingSet.read(await write(makeMemory(4), [1]))).manifest).not.toHaveProperty(
      'snapshotId',
    )
  })

  test('is readable by its owner alone', async () => {
    const path = await write(makeMemory(4), [1])
    expect(statSync(path).mode & 0o777).toBe(0o600)
  })

  test('does not store zero pages and holes', async () => {
    const memoryFile = makeMemory(100, (page) => page >= 10)
    truncateSync(memoryFile, 200 * PAGE)
    const path = await write(memoryFile, [150, 9, 10, 11, 8, 50])
    const read = readSet(path)
    expect([...read.zeroPages].sort((a, b) => a - b)).toEqual([10, 11, 50, 150])
    expect(read.groups).toEqual([{ pages: 6, dataBytes: 2 * PAGE, extents: 4 }])
    expect((await WorkingSet.read(path)).describe().file).toMatchObject({
      dataPageCount: 2,
      zeroPageCount: 4,
    })
  })

  test('has groups of 256 pages with data in first-touch order', async () => {
    const pages = Array.from({ length: 1000 }, (_, i) => (i * 379) % 1000)
    const read = readSet(
      await write(
        makeMemory(1000, (page) => page % 5 === 0),
        pages,
      ),
    )
    expect(read.groups.map(({ dataBytes }) => dataBytes)).toEqual([
      1 << 20,
      1 << 20,
      1 << 20,
      32 * PAGE,
    ])
    expect(read.groups.every(({ extents }) => extents > 1)).toBe(true)
  })

  test('ends a group of zeros at 4096 pages', async () => {
    const memoryFile = newPath('memory')
    writeFileSync(memoryFile, '')
    truncateSync(memoryFile, 5000 * PAGE)
    const path = await write(
      memoryFile,
      Array.from({ length: 5000 }, (_, i) => i),
    )
    expect(readSet(path).groups).toEqual([
      { pages: 4096, dataBytes: 0, extents: 1 },
      { pages: 904, dataBytes: 0, extents: 1 },
    ])
    expect((await (await WorkingSet.read(path)).verify({ memoryFile })).identical).toBe(true)
  })

  test('may have no pages', async () => {
    const memoryFile = makeMemory(4)
    const path = await write(memoryFile, [])
    expect(readSet(path)).toMatchObject({ touches: [], groups: [] })
    const back = await WorkingSet.read(path)
    expect(back.pageCount).toBe(0)
    expect(await back.verify({ memoryFile })).toMatchObject({ pageCount: 0, identical: true })
  })

  test('of a 2 MiB guest has all 512 pages of a block', async () => {
    const memoryFile = makeMemory(2048, (page) => page % 512 < 300)
    const path = await write(memoryFile, [3, 1], 2097152)
    const read = readSet(path)
    expect(read.pageSize).toBe(2097152)
    expect(read.touches).toEqual([
      { page: 1536, timeUs: 0 },
      { page: 512, timeUs: 7 },
    ])
    expect(read.pages.size).toBe(1024)
    const back = await WorkingSet.read(path)
    expect([...back.order.pages]).toEqual([3, 1])
    expect(await back.verify({ memoryFile })).toMatchObject({ pageCount: 1024, identical: true })
  })

  test('gives a second reader, written from the specification, every page of the memory file', async () => {
    const cases = fc.record({
      pages: fc.uniqueArray(fc.nat(599), { maxLength: 600, size: 'max' }),
      zeros: fc.integer({ min: 1, max: 5 }),
    })
    await fc.assert(
      fc.asyncProperty(cases, async ({ pages, zeros }) => {
        const memoryFile = makeMemory(600, (page) => page % 5 >= zeros)
        const path = await write(memoryFile, pages)
        const read = readSet(path)
        const memory = readFileSync(memoryFile)
        expect(read.touches.map(({ page }) => page)).toEqual(pages)
        expect(read.pages.size).toBe(pages.length)
        for (const { firstPage, pageCount, rank } of read.extents) {
          const ranks = Array.from({ length: pageCount }, (_, i) => pages.indexOf(firstPage + i))
          expect(rank).toBe(Math.min(...ranks))
        }
        for (const page of pages) {
          expect(pageIn(memory, page).equals(read.pages.get(page)!)).toBe(true)
          expect(read.zeroPages.has(page)).toBe(page % 5 >= zeros)
        }
        expect([...(await WorkingSet.read(path)).order.pages]).toEqual(pages)
        rmSync(memoryFile)
        rmSync(path)
      }),
      { numRuns: 25 },
    )
  })

  test('tells how far it has come', async () => {
    const seen: number[] = []
    const memoryFile = makeMemory(2500)
    await setOf(
      memoryFile,
      Array.from({ length: 2500 }, (_, i) => i),
    ).write(newPath('working-set'), {
      snapshot: { memoryFile },
      onProgress: ({ pageCount, totalPageCount }) => seen.push(pageCount, totalPageCount),
    })
    expect(seen).toEqual([1024, 2500, 2048, 2500, 2500, 2500])
  })
})

describe('the specification', () => {
  const page = readFileSync(new URL('../../docs/working-set-format.md', import.meta.url), 'utf8')

  test('shows a file that both readers read as it says', async () => {
    const lines = page
      .match(/```hexdump\n([^`]*)```/)![1]!
      .trim()
      .split('\n')
    const bytes = Buffer.alloc(Number.parseInt(lines.at(-1)!, 16))
    lines.forEach((line, i) => {
      if (line === '*' || line.length <= 8) return
      const at = Number.parseInt(line.slice(0, 8), 16)
      const end = lines[i + 1] === '*' ? Number.parseInt(lines[i + 2]!.slice(0, 8), 16) : at + 16
      bytes.fill(Buffer.from(line.slice(10, 58).replaceAll(' ', ''), 'hex'), at, end)
    })
    const path = newPath('example')
    writeFileSync(path, bytes)
    const memory = Buffer.alloc(16 * PAGE)
    for (const [number, byte] of [
      [2, 0x22],
      [4, 0x33],
      [5, 0x55],
    ] as const) {
      pageIn(memory, number).fill(byte)
    }
    const memoryFile = newPath('memory')
    writeFileSync(memoryFile, memory)

    const read = readSet(path)
    expect([...read.id]).toEqual(Array.from({ length: 16 }, (_, i) => i))
    expect(read.manifest).toMatchObject({ label: 'example', snapshotId: 'vm-7' })
    expect(read.touches).toEqual([
      { page: 5, timeUs: 10 },
      { page: 2, timeUs: 55 },
      { page: 3, timeUs: 130 },
      { page: 4, timeUs: 410 },
    ])
    const set = await WorkingSet.read(path)
    expect([...set.order.pages]).toEqual([5, 2, 3, 4])
    expect((await set.verify({ memoryFile })).identical).toBe(true)

    // The writer gives these very bytes.
    const manifest = encodeManifest(set.manifest!)
    const dataOffset = dataOffsetFor(4, 4, 0, manifest.length)
    const group = { dataOffset, dataBytes: 3 * PAGE, firstExtent: 0, extentCount: 3, firstRank: 0 }
    const { dataPageCount: dataPages, zeroPageCount: zeroPages } = set.describe().file!
    const head = encodeHead(
      {
        ...read,
        touches: Uint32Array.from(read.touches.flatMap(({ page, timeUs }) => [page, timeUs])),
        writtenShare: undefined,
        dataPages,
        zeroPages,
        disks: [],
        diskTouches: new Uint32Array(),
      },
      [{ ...group, checksum: crc32c(bytes.subarray(dataOffset)) }],
      read.extents.map((extent) => ({ ...extent, zero: read.zeroPages.has(extent.firstPage) })),
      manifest,
      dataOffset,
    )
    expect(head.equals(bytes.subarray(0, head.length))).toBe(true)
  })

  test('gives the right checksums', () => {
    const digits = Buffer.from('123456789')
    expect(page).toContain('0xE3069283')
    expect(crc32c(digits)).toBe(0xe3069283)
    expect(crc32cOf(digits)).toBe(0xe3069283)
    expect(crc32c(digits.subarray(4), crc32c(digits.subarray(0, 4)))).toBe(0xe3069283)
    expect(crc32c(Buffer.alloc(PAGE))).toBe(0x98f94189)
  })
})
