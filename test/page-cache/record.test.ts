import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { readFile } from 'node:fs/promises'
import { constants } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import type { Touch } from '../../native/guest/driver/kvm-guest.mjs'
import { native } from '../../src/binding/addon.js'
import {
  type PageCacheRecording,
  prefetchPageCache,
  type RecordPageCacheOptions,
  recordPageCache,
  WorkingSet,
} from '../../src/index.js'
import { checkBuild } from '../support/cli-process.js'
import {
  asNobody,
  evict,
  nobodyMissing,
  pageCache,
  readableToAll,
  readPages,
  residentPages,
  threadGuest,
} from '../support/page-cache.js'
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

const needsX64 = process.arch !== 'x64'
const TMPFS = '/dev/shm'

const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)
const sorted = (pages: Iterable<number>) => [...pages].sort((a, b) => a - b)

async function recording(options: RecordPageCacheOptions): Promise<PageCacheRecording> {
  const started = await recordPageCache(options)
  onTestFinished(async () => void (await started.stop()))
  return started
}

describe('a recording of the page cache', () => {
  test('has what came into the page cache between its start and its end, of each file', async () => {
    const memoryFile = makeMemory(2048)
    const odd = 300 * PAGE + 17
    const diskImages = [makeDisk(2 ** 22), makeDisk(odd)]
    readPages(memoryFile, [5])
    const onEvent = vi.fn()
    const record = await recording({ snapshot: { memoryFile, diskImages }, onEvent })
    expect([memoryFile, ...diskImages].map(residentPages)).toEqual([[], [], []])
    readPages(memoryFile, [1999, 3])
    readPages(diskImages[0]!, [40])
    readPages(diskImages[1]!, [300])
    const { trace, disks, mapper, trimmedPageCount, lookCount, longestGapMs } = await record.stop()
    const after = [memoryFile, ...diskImages].map(residentPages)
    expect([trace, ...disks].map(({ pages }) => sorted(pages))).toEqual(after)
    expect(after[0]).toEqual(expect.arrayContaining([3, 1999]))
    expect(after[1]).toContain(40)
    expect(after[2]).toContain(300)
    expect(trace).toMatchObject({ pageSize: PAGE, memoryBytes: 2048 * PAGE })
    expect(disks.map(({ memoryBytes }) => memoryBytes)).toEqual([2 ** 22, 301 * PAGE])
    expect({ mapper, trimmedPageCount }).toEqual({ mapper: undefined, trimmedPageCount: 0 })
    expect(onEvent).not.toHaveBeenCalled()
    expect(lookCount).toBeGreaterThanOrEqual(1)
    expect(longestGapMs).toBeGreaterThanOrEqual(0)
    for (const { timesUs } of [trace, ...disks]) {
      expect([...timesUs]).toEqual(sorted(timesUs))
    }
  })

  test('misses no page that a look finds on its way from the disk', async () => {
    const image = makeDisk(8192 * PAGE)
    const memoryFile = makeMemory(1)
    for (let round = 0; round < 3; round++) {
      const snapshot = { memoryFile, diskImages: [image] }
      const record = await recording({ snapshot, intervalMs: 0.1 })
      await readFile(image)
      const { disks } = await record.stop()
      expect(disks[0]!.pages).toHaveLength(8192)
    }
  })

  test('has a page once, however often it comes and goes', async () => {
    const memoryFile = makeMemory(64)
    const cache = await pageCache()
    const record = await recording({ snapshot: { memoryFile }, intervalMs: 0.1 })
    for (let i = 0; i < 5; i++) {
      readPages(memoryFile, range(0, 64))
      await cache.set('cold', [memoryFile])
    }
    readPages(memoryFile, range(0, 64))
    const { trace } = await record.stop()
    expect(sorted(trace.pages)).toEqual(range(0, 64))
  })

  test.skipIf(needsX64)(
    'is trimmed to what a process mapped, in the order of its touches',
    // On a busy machine the recorder may not look in time.
    { retry: 3 },
    async () => {
      const pages = 16 * 256
      const memoryFile = makeMemory(pages)
      // From high to low, as pages of one look are in the order of their numbers. A page that is
      // written comes alone into the page table. Work between them gives time for many looks.
      const touched = range(0, 128).map((i) => pages - 16 - i * 32)
      const touches = touched.map((page): Touch => ({ page, write: true }))
      // Before, as its trace is made from the file.
      const guest = threadGuest(memoryFile, touches, { spins: 2 ** 23, pause: ['ready', 'done'] })
      await guest.event('ready')
      const record = await recording({ snapshot: { memoryFile } })
      guest.go()
      expect(await guest.event('done')).toMatchObject({ entries: 128, wrong: 0 })
      const { trace, mapper, trimmedPageCount } = await record.stop()
      expect(sorted(trace.pages)).toEqual(sorted(touched))
      expect(mapper).toEqual({ pid: guest.pid })
      // Pages may leave the page cache, and none comes besides.
      const resident = residentPages(memoryFile).length
      expect(trimmedPageCount).toBeGreaterThanOrEqual(resident - touched.length)
      expect(trimmedPageCount).toBeLessThanOrEqual(pages - touched.length)
      expect(trimmedPageCount).toBeGreaterThan(0)
      const place = new Map([...trace.pages].map((page, i) => [page, i]))
      const places = touched.map((page) => place.get(page)!)
      expect(Math.max(...places.slice(0, 16))).toBeLessThan(Math.min(...places.slice(-16)))
      guest.go()
      expect(await guest.exited).toEqual({ code: 0, signal: null })
    },
  )

  test.skipIf(needsX64)('has every page that a process read, and few others', async () => {
    const memoryFile = makeMemory(16 * 256)
    const touched = range(0, 200).map((i) => ((i * 797) % 4096) & ~1)
    const guest = threadGuest(memoryFile, touched, { pause: ['ready', 'done'] })
    await guest.event('ready')
    const record = await recording({ snapshot: { memoryFile } })
    guest.go()
    await guest.event('done')
    const { trace } = await record.stop()
    expect([...trace.pages]).toEqual(expect.arrayContaining(touched))
    // At the most the 64 KiB around each.
    const around = new Set(touched.map((page) => page >> 4))
    expect([...trace.pages].filter((page) => !around.has(page >> 4))).toEqual([])
  })

  test('warns where the page table of the VMM may not be read, and has what was read ahead', async () => {
    const memoryFile = makeMemory(64)
    const onEvent = vi.fn()
    const record = await recording({ snapshot: { memoryFile }, onEvent })
    readPages(memoryFile, [5])
    const { stopRecording } = native()
    const spy = vi.spyOn(native(), 'stopRecording').mockImplementationOnce(async (recorder) => {
      const stopped = await stopRecording(recorder)
      if (!Array.isArray(stopped)) return stopped
      const [cached, mapped, [, , ...figures]] = stopped
      return [cached, mapped, Float64Array.of(0, constants.errno.EACCES, ...figures)]
    })
    onTestFinished(() => spy.mockRestore())
    const { trace, mapper, trimmedPageCount } = await record.stop()
    expect(sorted(trace.pages)).toEqual(residentPages(memoryFile))
    expect({ mapper, trimmedPageCount }).toEqual({ mapper: undefined, trimmedPageCount: 0 })
    expect(onEvent.mock.calls).toMatchObject([
      [{ type: 'warning', error: { code: 'ERR_PAGE_CACHE', check: 'pagemap' } }],
    ])
  })

  test('gives the same record at a second stop()', async () => {
    const record = await recording({ snapshot: { memoryFile: makeMemory(64) } })
    const [first, second] = [record.stop(), record.stop()]
    expect(await second).toBe(await first)
    expect(await record.stop()).toBe(await first)
  })

  test('ends with its scope', async () => {
    const memoryFile = makeMemory(64)
    let ended: PageCacheRecording
    {
      await using record = await recordPageCache({ snapshot: { memoryFile } })
      ended = record
    }
    readPages(memoryFile, [7])
    expect((await ended.stop()).trace.pages).toHaveLength(0)
  })

  test.skipIf(needsX64)('is refused while another process maps a file, by its pid', async () => {
    const memoryFile = makeMemory(256)
    const guest = threadGuest(memoryFile, range(0, 256), { pause: ['done'] })
    await guest.event('done')
    const image = makeDisk(2 ** 20)
    expect(await failureOf(recordPageCache({ snapshot: { memoryFile } }))).toMatchObject({
      code: 'ERR_PAGE_CACHE',
      check: 'mapped',
      path: memoryFile,
      message: expect.stringContaining(`process ${guest.pid} maps it`),
      hint: expect.any(String),
    })
    // So it is where the file is one of the disk images.
    const other = { memoryFile: image, diskImages: [memoryFile] }
    expect(await failureOf(recordPageCache({ snapshot: other }))).toMatchObject({
      check: 'mapped',
      path: memoryFile,
    })
  })

  const noTmpfs = !existsSync(TMPFS)
  test.skipIf(noTmpfs)(
    `is refused for files that have no other place than memory${noTmpfs ? `, skipped without ${TMPFS}` : ''}`,
    async () => {
      const own = mkdtempSync(join(TMPFS, 'reap-test-'))
      onTestFinished(() => rmSync(own, { recursive: true }))
      const memoryFile = join(own, 'memory')
      writeFileSync(memoryFile, Buffer.alloc(3 * PAGE, 'x'))
      const failure = await failureOf(recordPageCache({ snapshot: { memoryFile } }))
      expect(failure).toMatchObject({ code: 'ERR_PAGE_CACHE', check: 'stays', path: memoryFile })
      expect(failure.message).toContain('3 pages stay')
      expect('offset' in failure).toBe(false)
    },
  )

  const cases: [string, () => string, object][] = [
    ['missing', () => join(folder, 'nowhere'), { syscall: 'stat' }],
    [
      'empty',
      () => {
        const path = newPath('empty')
        writeFileSync(path, '')
        return path
      },
      { check: 'empty' },
    ],
    [
      'a folder',
      () => {
        const path = newPath('folder')
        mkdirSync(path)
        return path
      },
      { check: 'regular-file' },
    ],
  ]
  describe.each(cases)('of a file that is %s', (_, make, details) => {
    test.each(['memory file', 'disk image'])('is refused, where that is the %s', async (kind) => {
      const path = make()
      const memoryFile = kind === 'memory file' ? path : makeMemory(16)
      const diskImages = kind === 'disk image' ? [makeDisk(PAGE), path] : []
      const failure = await failureOf(recordPageCache({ snapshot: { memoryFile, diskImages } }))
      expect(failure).toMatchObject({ code: 'ERR_SOURCE_READ', path, ...details })
      expect(failure.message).toContain(kind)
    })
  })

  test.each([
    ['no options', undefined, /recordPageCache\(\) expects an options object/],
    ['no snapshot', {}, /"snapshot" of recordPageCache\(\) to be an object with a memoryFile/],
    ['a path for a snapshot', { snapshot: 'm' }, /"snapshot" of recordPageCache\(\) .* got "m"/],
    [
      'no memory file',
      { snapshot: {} },
      /"memoryFile" of the snapshot of recordPageCache\(\) to be a non-empty path/,
    ],
    [
      'one path for a list',
      { snapshot: { memoryFile: 'm', diskImages: 'd' } },
      /"diskImages" .* got "d"/,
    ],
    [
      'too many images',
      { snapshot: { memoryFile: 'm', diskImages: Array(17).fill('d') } },
      /at most 16/,
    ],
    ['no interval', { snapshot: { memoryFile: 'm' }, intervalMs: 0 }, /from 0.1 to 1000, got 0/],
    [
      'another spelling',
      { snapshot: { memoryFile: 'm', diskimages: [] } },
      /did you mean "diskImages"\?/,
    ],
  ])('is misused with %s', async (_, options, message) => {
    const misuse = recordPageCache(options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })
})

test.skipIf(needsX64)('what one run mapped and read is there for the next', async () => {
  const memoryFile = makeMemory(4096)
  const diskImages = [makeDisk(2 ** 22), makeDisk(300 * PAGE + 17)]
  const touched = range(0, 300).map((i) => (i * 797) % 4096)
  const guest = threadGuest(memoryFile, touched, { pause: ['ready', 'done'] })
  await guest.event('ready')
  await using record = await recordPageCache({ snapshot: { memoryFile, diskImages } })
  guest.go()
  await guest.event('done')
  readPages(diskImages[0]!, [1, 500])
  readPages(diskImages[1]!, [300])
  const { trace, disks } = await record.stop()
  guest.go()
  expect(await guest.exited).toEqual({ code: 0, signal: null })
  const path = newPath('vm.ws')
  await WorkingSet.fromTraces([trace], { disks: disks.map((disk) => [disk]) }).write(path, {
    snapshot: { memoryFile, diskImages },
  })
  const set = await WorkingSet.read(path)
  expect(set.order.pages).toEqual(trace.pages)
  expect(set.disks.map(({ bytes }) => bytes)).toEqual(
    diskImages.map((image) => statSync(image).size),
  )
  await evict(memoryFile, ...diskImages)
  const result = await prefetchPageCache({ snapshot: { memoryFile, diskImages }, workingSet: path })
  expect(result).toMatchObject({ complete: true })
  expect(residentPages(memoryFile)).toEqual(expect.arrayContaining(touched))
  expect(residentPages(diskImages[0]!)).toEqual(expect.arrayContaining([1, 500]))
  expect(residentPages(diskImages[1]!)).toContain(300)
  const next = threadGuest(memoryFile, touched)
  expect(await next.event('verified')).toMatchObject({ wrong: 0 })
})

const missing = nobodyMissing()
const because = missing ? `, skipped ${missing}` : ''
describe.skipIf(missing)(`as a user who may only read the files${because}`, () => {
  beforeAll(checkBuild)

  test('nothing can be recorded', async () => {
    const memoryFile = makeMemory(16)
    readableToAll(memoryFile)
    const outcome = asNobody('return api.recordPageCache(args)', { snapshot: { memoryFile } })
    expect(await outcome).toMatchObject({
      code: 'ERR_PAGE_CACHE',
      check: 'hidden',
      path: memoryFile,
      message: expect.stringContaining('does not tell'),
    })
  })

  test('a working set can be prefetched', async () => {
    const memoryFile = makeMemory(2048)
    const [image, secret] = [makeDisk(2 ** 20), makeDisk(2 ** 20)]
    const trace = diskTrace(2 ** 20, [[7, 1]])
    const workingSet = newPath('vm.ws')
    const set = setOf(memoryFile, [9, 1000], PAGE, [trace, trace])
    await set.write(workingSet, { snapshot: { memoryFile, diskImages: [image, secret] } })
    readableToAll(memoryFile, image, workingSet)
    chmodSync(secret, 0o600)
    await evict(memoryFile, image, secret)
    const code = `
      const warnings = []
      const onEvent = ({ error }) => warnings.push(error)
      return { ...(await api.prefetchPageCache({ ...args, onEvent })), warnings }`
    const snapshot = { memoryFile, diskImages: [image, secret] }
    const outcome = asNobody(code, { snapshot, workingSet })
    // Which pages were there before is not told.
    expect(await outcome).toMatchObject({ pageCount: 3, residentPageCount: 0, bytes: 3 * PAGE })
    expect(residentPages(memoryFile)).toEqual(expect.arrayContaining([9, 1000]))
    expect(residentPages(image)).toEqual([7])
    // The other is no file of theirs.
    expect(await outcome).toMatchObject({
      complete: false,
      warnings: [{ code: 'ERR_SOURCE_READ', path: secret }],
    })
  })

  test('a memory file that may not be read is refused', async () => {
    const memoryFile = makeMemory(16)
    const workingSet = newPath('vm.ws')
    await setOf(memoryFile, [3]).write(workingSet, { snapshot: { memoryFile } })
    readableToAll(workingSet)
    chmodSync(memoryFile, 0o600)
    const outcome = asNobody('return api.prefetchPageCache(args)', {
      snapshot: { memoryFile },
      workingSet,
    })
    expect(await outcome).toMatchObject({ code: 'ERR_SOURCE_READ', path: memoryFile })
  })
})
