import { execFile } from 'node:child_process'
import { statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { native } from '../../src/binding/addon.js'
import { prefetchPageCache, WorkingSet } from '../../src/index.js'
import { evict, residentPages } from '../support/page-cache.js'
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

const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)
const sorted = (pages: Iterable<number>) => [...pages].sort((a, b) => a - b)

const terminated = fileURLToPath(
  new URL('../support/fixtures/worker-prefetches.mjs', import.meta.url),
)

/** A page of the file is not what it was any more. */
async function spoil(path: string, page: number): Promise<void> {
  const file = await open(path, 'r+')
  await file.write(Buffer.from('spoilt'), 0, 6, page * PAGE)
  await file.sync()
  await file.close()
}

describe('a prefetch into the page cache', () => {
  const order = [700, 3, 4, 5, 1500, 1501, 90]
  const onDisks = [
    [10, 11, 12, 200],
    [0, 300],
  ]
  const sizes = [2 ** 20, 300 * PAGE + 17]

  async function recorded(name = 'file') {
    const memoryFile = makeMemory(2048)
    const diskImages = sizes.map(makeDisk)
    const disks = onDisks.map((pages, i) =>
      diskTrace(
        sizes[i]!,
        pages.map((page, place) => [page, place * 9]),
      ),
    )
    const places = setOf(memoryFile, order, PAGE, disks)
    const path = newPath('vm.ws')
    if (name === 'file') await places.write(path, { memoryFile, diskImages })
    const workingSet = name === 'file' ? path : places
    await evict(memoryFile, ...diskImages)
    return { memoryFile, diskImages, workingSet }
  }

  test.each(['file', 'traces'])(
    'brings in the pages of a working set from %s, and no others',
    async (name) => {
      const s = await recorded(name)
      const result = await prefetchPageCache(s)
      expect(result).toEqual({
        pages: 13,
        residentPages: expect.any(Number),
        bytes: expect.any(Number),
        extents: expect.any(Number),
        askedMs: expect.any(Number),
        thereMs: expect.any(Number),
        complete: true,
      })
      expect(result.thereMs).toBeGreaterThanOrEqual(result.askedMs)
      expect(result.bytes).toBe((13 - result.residentPages) * PAGE)
      expect(residentPages(s.memoryFile)).toEqual(sorted(order))
      expect(s.diskImages.map(residentPages)).toEqual(onDisks)
      if (name === 'traces') expect(result).toMatchObject({ residentPages: 0, extents: 10 })
    },
  )

  test('takes a set that was read, and leaves out images that are not named', async () => {
    const s = await recorded()
    const workingSet = await WorkingSet.read(s.workingSet as string)
    const diskImages = s.diskImages.slice(0, 1)
    expect(await prefetchPageCache({ ...s, workingSet, diskImages })).toMatchObject({
      pages: 11,
      complete: true,
    })
    expect(s.diskImages.map(residentPages)).toEqual([onDisks[0], []])
  })

  test('has nothing to do where all is there', async () => {
    const s = await recorded()
    await prefetchPageCache(s)
    expect(await prefetchPageCache(s)).toMatchObject({
      pages: 13,
      residentPages: 13,
      bytes: 0,
      extents: 0,
      complete: true,
    })
  })

  test('brings in long runs whole, longer than the kernel reads ahead', async () => {
    const [pages, first, count] = [8192, 100, 6000]
    const memoryFile = makeMemory(1)
    const image = makeDisk(pages * PAGE)
    const touches = range(first, count).map((page): [number, number] => [page, 5])
    const workingSet = setOf(memoryFile, [], PAGE, [diskTrace(pages * PAGE, touches)])
    expect(workingSet.disks[0]!.extents).toHaveLength(1)
    await evict(image)
    const result = await prefetchPageCache({ memoryFile, workingSet, diskImages: [image] })
    expect(result).toMatchObject({ pages: count, bytes: count * PAGE, complete: true })
    expect(residentPages(image)).toEqual(range(first, count))
  })

  test.each([
    [0, []],
    [PAGE, [3]],
    [3 * PAGE, [3, 700]],
    [4 * PAGE, [3, 4, 700]],
  ])('reads no more than a budget of %i bytes, what comes first first', async (maxBytes) => {
    const s = await recorded('traces')
    const { memoryFile, workingSet } = s
    const result = await prefetchPageCache({ memoryFile, workingSet, maxBytes })
    expect(result.complete).toBe(false)
    expect(result.bytes).toBeLessThanOrEqual(maxBytes)
    expect(residentPages(memoryFile)).toHaveLength(result.bytes / PAGE)
  })

  test('rejects with the reason of its signal', async () => {
    const s = await recorded()
    const reason = new Error('the request is gone')
    await expect(prefetchPageCache({ ...s, signal: AbortSignal.abort(reason) })).rejects.toBe(
      reason,
    )
    expect(residentPages(s.memoryFile)).toEqual([])
    const controller = new AbortController()
    const going = prefetchPageCache({ ...s, signal: controller.signal })
    controller.abort(reason)
    await expect(going).rejects.toBe(reason)
  })

  test('is refused for a memory file of another size', async () => {
    const { workingSet } = await recorded()
    const memoryFile = makeMemory(2049)
    expect(await failureOf(prefetchPageCache({ memoryFile, workingSet }))).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'size',
      path: memoryFile,
    })
  })

  test.each(['file', 'traces'])(
    'leaves out a disk image that is another or gone, with a set from %s',
    async (name) => {
      const s = await recorded(name)
      const [image, other] = s.diskImages as [string, string]
      const cases: [path: string, error: object][] = [
        [join(folder, 'nowhere.img'), { code: 'ERR_SOURCE_READ', syscall: 'stat' }],
        [makeDisk(2 ** 21), { code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' }],
      ]
      if (name === 'file') {
        const changed = makeDisk(2 ** 20)
        await spoil(changed, 10)
        cases.push([changed, { code: 'ERR_SNAPSHOT_MISMATCH', check: 'sample', offset: 10 * PAGE }])
      }
      for (const [path, error] of cases) {
        await evict(s.memoryFile, image, other)
        const result = await prefetchPageCache({ ...s, diskImages: [path, other] })
        expect(result).toMatchObject({ pages: 9, complete: false, error: { ...error, path } })
        expect(result.error!.message).toContain('disk image')
        expect(residentPages(s.memoryFile)).toEqual(expect.arrayContaining(sorted(order)))
        expect(residentPages(other)).toEqual(onDisks[1])
      }
    },
  )

  test.each([
    ['no memory file', { workingSet: 'w' }, /"memoryFile" of prefetchPageCache\(\)/],
    ['no working set', { memoryFile: 'm' }, /a WorkingSet or the path of a working-set file/],
    ['half a byte', { memoryFile: 'm', workingSet: 'w', maxBytes: 0.5 }, /a non-negative int/],
    ['another spelling', { memoryFile: 'm', workingset: 'w' }, /did you mean "workingSet"\?/],
  ])('is misused with %s', async (_, options, message) => {
    const misuse = prefetchPageCache(options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })

  test('is misused with more images than the set has', async () => {
    const s = await recorded()
    const misuse = prefetchPageCache({ ...s, diskImages: [...s.diskImages, makeDisk(PAGE)] })
    await expect(misuse).rejects.toThrow(/no more diskImages than the working set has, 2, got 3/)
  })

  test('ends with its signal, and does not wait for a disk that does not answer', async () => {
    const { memoryFile, workingSet } = await recorded()
    await evict(memoryFile)
    const addon = native()
    vi.spyOn(addon, 'prefetchPageCache').mockReturnValueOnce([7, new Promise(() => {})])
    const cancelled = vi.spyOn(addon, 'cancelPrefetch')
    onTestFinished(() => void vi.restoreAllMocks())
    const reason = new Error('no longer needed')
    const controller = new AbortController()
    const { signal } = controller
    const prefetched = prefetchPageCache({ memoryFile, workingSet, signal })
    await vi.waitFor(() => expect(addon.prefetchPageCache).toHaveBeenCalledOnce())
    controller.abort(reason)
    await expect(prefetched).rejects.toBe(reason)
    expect(cancelled).toHaveBeenCalledExactlyOnceWith(statSync(memoryFile).dev, 7)
  })

  test('may be under way when its worker thread or its process ends', async () => {
    const { memoryFile, workingSet, diskImages } = await recorded()
    const moments = Array.from({ length: 12 }, (_, i) => String(i % 6))
    const words = [terminated, memoryFile, workingSet as string, diskImages[0]!, ...moments]
    // Rejects when the process was ended by a signal, as a fault in the addon does.
    await promisify(execFile)(process.execPath, words)
  })

  test('says when the working set is missing or damaged', async () => {
    const { memoryFile } = await recorded()
    const missing = prefetchPageCache({ memoryFile, workingSet: join(folder, 'nowhere.ws') })
    expect(await failureOf(missing)).toMatchObject({ code: 'ERR_WORKING_SET_IO' })
    const damaged = prefetchPageCache({ memoryFile, workingSet: memoryFile })
    expect(await failureOf(damaged)).toMatchObject({ code: 'ERR_WORKING_SET_INVALID' })
  })
})
