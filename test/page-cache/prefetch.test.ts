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
    const snapshot = { memoryFile, diskImages }
    const places = setOf(memoryFile, order, PAGE, disks)
    const path = newPath('vm.ws')
    if (name === 'file') await places.write(path, { snapshot })
    const workingSet = name === 'file' ? path : places
    await evict(memoryFile, ...diskImages)
    return { snapshot, workingSet }
  }

  test.each(['file', 'traces'])(
    'brings in the pages of a working set from %s, and no others',
    async (name) => {
      const { snapshot, workingSet } = await recorded(name)
      const result = await prefetchPageCache({ snapshot, workingSet })
      expect(result).toEqual({
        pageCount: 13,
        residentPageCount: expect.any(Number),
        bytes: expect.any(Number),
        extentCount: expect.any(Number),
        startedAtMs: expect.any(Number),
        submittedMs: expect.any(Number),
        completedMs: expect.any(Number),
        complete: true,
      })
      expect(result.completedMs).toBeGreaterThanOrEqual(result.submittedMs)
      expect(result.bytes).toBe((13 - result.residentPageCount) * PAGE)
      expect(residentPages(snapshot.memoryFile)).toEqual(sorted(order))
      expect(snapshot.diskImages.map(residentPages)).toEqual(onDisks)
      if (name === 'traces') expect(result).toMatchObject({ residentPageCount: 0, extentCount: 10 })
    },
  )

  test('takes a set that was read, and leaves out images that are not named', async () => {
    const { snapshot, workingSet: path } = await recorded()
    const workingSet = await WorkingSet.read(path as string)
    const named = { ...snapshot, diskImages: snapshot.diskImages.slice(0, 1) }
    expect(await prefetchPageCache({ snapshot: named, workingSet })).toMatchObject({
      pageCount: 11,
      complete: true,
    })
    expect(snapshot.diskImages.map(residentPages)).toEqual([onDisks[0], []])
  })

  test('has nothing to do where all is there', async () => {
    const s = await recorded()
    await prefetchPageCache(s)
    expect(await prefetchPageCache(s)).toMatchObject({
      pageCount: 13,
      residentPageCount: 13,
      bytes: 0,
      extentCount: 0,
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
    const result = await prefetchPageCache({
      snapshot: { memoryFile, diskImages: [image] },
      workingSet,
    })
    expect(result).toMatchObject({ pageCount: count, bytes: count * PAGE, complete: true })
    expect(residentPages(image)).toEqual(range(first, count))
  })

  test.each([
    [0, []],
    [PAGE, [3]],
    [3 * PAGE, [3, 700]],
    [4 * PAGE, [3, 4, 700]],
  ])('reads no more than a budget of %i bytes, what comes first first', async (maxBytes) => {
    const {
      snapshot: { memoryFile },
      workingSet,
    } = await recorded('traces')
    const result = await prefetchPageCache({ snapshot: { memoryFile }, workingSet, maxBytes })
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
    expect(residentPages(s.snapshot.memoryFile)).toEqual([])
    const controller = new AbortController()
    const going = prefetchPageCache({ ...s, signal: controller.signal })
    controller.abort(reason)
    await expect(going).rejects.toBe(reason)
  })

  test('is refused for a memory file of another size', async () => {
    const { workingSet } = await recorded()
    const memoryFile = makeMemory(2049)
    expect(
      await failureOf(prefetchPageCache({ snapshot: { memoryFile }, workingSet })),
    ).toMatchObject({
      code: 'ERR_SNAPSHOT_MISMATCH',
      check: 'size',
      path: memoryFile,
    })
  })

  test.each(['file', 'traces'])(
    'leaves out a disk image that is another or gone, with a set from %s',
    async (name) => {
      const { snapshot, workingSet } = await recorded(name)
      const { memoryFile } = snapshot
      const [image, other] = snapshot.diskImages as [string, string]
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
        await evict(memoryFile, image, other)
        const onEvent = vi.fn()
        const result = await prefetchPageCache({
          snapshot: { memoryFile, diskImages: [path, other] },
          workingSet,
          onEvent,
        })
        expect(result).toMatchObject({ pageCount: 9, complete: false })
        expect(result).not.toHaveProperty('error')
        const message = expect.stringContaining('disk image')
        expect(onEvent.mock.calls).toMatchObject([
          [{ type: 'warning', error: { ...error, path, message } }],
        ])
        expect(residentPages(memoryFile)).toEqual(expect.arrayContaining(sorted(order)))
        expect(residentPages(other)).toEqual(onDisks[1])
      }
    },
  )

  const snapshot = { memoryFile: 'm' }
  test.each([
    ['no snapshot', { workingSet: 'w' }, /"snapshot" of prefetchPageCache\(\)/],
    [
      'no memory file',
      { snapshot: {}, workingSet: 'w' },
      /"memoryFile" of the snapshot of prefetchPageCache\(\)/,
    ],
    ['no working set', { snapshot }, /a WorkingSet or the path of a working-set file/],
    ['half a byte', { snapshot, workingSet: 'w', maxBytes: 0.5 }, /a non-negative int/],
    ['no listener', { snapshot, workingSet: 'w', onEvent: {} }, /"onEvent" .* to be a function/],
    ['another spelling', { snapshot, workingset: 'w' }, /did you mean "workingSet"\?/],
  ])('is misused with %s', async (_, options, message) => {
    const misuse = prefetchPageCache(options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })

  test('is misused with more images than the set has', async () => {
    const { snapshot, workingSet } = await recorded()
    const diskImages = [...snapshot.diskImages, makeDisk(PAGE)]
    const misuse = prefetchPageCache({ snapshot: { ...snapshot, diskImages }, workingSet })
    await expect(misuse).rejects.toThrow(/at most 2 diskImages, one for each .*, got 3/)
  })

  test('ends with its signal, and does not wait for a disk that does not answer', async () => {
    const {
      snapshot: { memoryFile },
      workingSet,
    } = await recorded()
    const addon = native()
    vi.spyOn(addon, 'prefetchPageCache').mockReturnValueOnce([7, new Promise(() => {})])
    const cancelled = vi.spyOn(addon, 'cancelPrefetch')
    onTestFinished(() => void vi.restoreAllMocks())
    const reason = new Error('no longer needed')
    const controller = new AbortController()
    const { signal } = controller
    const prefetched = prefetchPageCache({ snapshot: { memoryFile }, workingSet, signal })
    await vi.waitFor(() => expect(addon.prefetchPageCache).toHaveBeenCalledOnce())
    controller.abort(reason)
    await expect(prefetched).rejects.toBe(reason)
    expect(cancelled).toHaveBeenCalledExactlyOnceWith(statSync(memoryFile).dev, 7)
  })

  test('may be under way when its worker thread or its process ends', async () => {
    const { snapshot, workingSet } = await recorded()
    const { memoryFile, diskImages } = snapshot
    const moments = Array.from({ length: 12 }, (_, i) => String(i % 6))
    const words = [terminated, memoryFile, workingSet as string, diskImages[0]!, ...moments]
    // Rejects when the process was ended by a signal, as a fault in the addon does.
    await promisify(execFile)(process.execPath, words)
  })

  test('says when the working set is missing or damaged', async () => {
    const {
      snapshot: { memoryFile },
    } = await recorded()
    const missing = prefetchPageCache({
      snapshot: { memoryFile },
      workingSet: join(folder, 'nowhere.ws'),
    })
    expect(await failureOf(missing)).toMatchObject({ code: 'ERR_WORKING_SET_IO' })
    const damaged = prefetchPageCache({ snapshot: { memoryFile }, workingSet: memoryFile })
    expect(await failureOf(damaged)).toMatchObject({ code: 'ERR_WORKING_SET_INVALID' })
  })
})
