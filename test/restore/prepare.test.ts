import { getEventListeners } from 'node:events'
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test } from 'vitest'
import {
  type FaultHandler,
  type PrepareRestoreOptions,
  prefetchPageCache,
  prepareRestore,
  type Restore,
  Trace,
  WorkingSet,
} from '../../src/index.js'
import { hostModel } from '../../src/restore/host-model.js'
import { learnFromHandler } from '../../src/restore/learn-costs.js'
import { planRestore } from '../../src/restore/prepare.js'
import { costs, hostCosts, withoutHostCosts } from '../support/host-costs.js'
import { evict, readPages, residentPages, threadGuest } from '../support/page-cache.js'
import { eventLog, fakeVmm, scratchFolder } from '../support/scratch.js'
import {
  diskTrace,
  failureOf,
  makeDisk,
  makeMemory,
  newPath,
  PAGE,
  setOf,
} from '../support/working-sets.js'

withoutHostCosts()

const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)
const order = range(0, 400).map((i) => (i * 797) % 4096)
const onDisk = [10, 11, 200]

/** A snapshot with a working set; all of it is in the page cache, as it was just written. */
async function snapshot({ pages = order, disk = false } = {}) {
  const folder = await scratchFolder()
  const memoryFile = makeMemory(4096)
  const workingSet = join(folder, 'vm.ws')
  const diskImages = disk ? [makeDisk(2 ** 20)] : []
  const traces = disk
    ? [
        diskTrace(
          2 ** 20,
          onDisk.map((page) => [page, page]),
        ),
      ]
    : []
  const set = setOf(memoryFile, pages, PAGE, traces)
  await set.write(workingSet, { memoryFile, ...(disk && { diskImages }) })
  readPages(memoryFile, range(0, 4096))
  const files = { memoryFile, socketPath: join(folder, 'uffd.sock') }
  const all = { ...files, workingSet, ...(disk && { diskImages }) }
  return { folder, files, all, set, evict: () => evict(memoryFile, workingSet, ...diskImages) }
}

/** What only garbage keeps alive is gone then; twice, as finalizers run between. */
async function collectGarbage() {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  for (let i = 0; i < 2; i++) {
    collect()
    await setImmediate()
  }
}

/** What is left of it is closed when the test ends. */
async function prepared(options: PrepareRestoreOptions): Promise<Restore> {
  const restore = await prepareRestore({ connectTimeoutMs: 30_000, vcpus: 'threads', ...options })
  onTestFinished(() => restore.close().catch(() => {}))
  return restore
}

const file = (path: string) => ({ backend_type: 'File', backend_path: path })
const uffd = (path: string) => ({ backend_type: 'Uffd', backend_path: path })

describe('on a host whose costs are known', () => {
  test('what is in the page cache is mapped', async () => {
    // In pieces of whatever size, which is the file system's choice.
    const threads = costs.guests.threads!
    const small = { ...threads.mapped.small, runUs: 0 }
    hostCosts({ ...costs, guests: { threads: { ...threads, mapped: { large: small, small } } } })
    const s = await snapshot()
    const restore = await prepared(s.all)
    expect(restore.memBackend).toEqual(file(s.all.memoryFile))
    expect(restore.choice).toBe('page-cache')
    expect(restore.handler).toBeUndefined()
    expect(existsSync(s.all.socketPath)).toBe(false)
    expect(restore.reason).toMatch(
      /^100 % of 1\.6 MiB of working set in the page cache: the kernel is estimated at 1\.4 ms, a fault handler at 4\.6 ms$/,
    )
    expect(restore.residency).toEqual({
      pages: 400,
      extents: 400,
      missingPages: 0,
      missingExtents: 0,
      missingBytes: 0,
      isVisible: true,
    })
    expect(restore.estimates!['page-cache'].ms).toBeCloseTo(1.4)
    expect(restore.estimates!.uffd.ms).toBeCloseTo(4.6)
    expect(await restore.prefetched).toMatchObject({
      pages: 400,
      residentPages: 400,
      bytes: 0,
      complete: true,
    })
  })

  test('what is on the disk is installed by a handler', async () => {
    hostCosts()
    const s = await snapshot()
    await s.evict()
    const restore = await prepared(s.all)
    expect(restore.memBackend).toEqual(uffd(s.all.socketPath))
    expect(restore.choice).toBe('uffd')
    expect(restore.handler!.socketPath).toBe(s.all.socketPath)
    expect(restore.reason).toMatch(
      /^\d+ %.* a fault handler is estimated at \d\.\d ms, 1\.6 ms of it reads, the kernel at \d+ ms, \d+ ms of it reads$/,
    )
    expect(restore.residency).toMatchObject({ pages: 400, missingBytes: 400 * PAGE })
    expect(restore.residency!.missingPages).toBeGreaterThan(360)
    expect(await restore.disksPrefetched).toBeUndefined()
  })

  test('costs of KVM count unless threads run the guest', async () => {
    hostCosts()
    const s = await snapshot()
    const { all } = s
    expect((await prepared({ ...all, vcpus: 'kvm' })).estimates!.uffd.ms).toBeCloseTo(6.4)
    const restore = await prepareRestore(all)
    expect(restore.estimates!.uffd.ms).toBeCloseTo(6.4)
    await restore.close()
  })
})

test('on a host that was not measured the page cache decides', async () => {
  const s = await snapshot()
  const warm = await prepared(s.all)
  expect(warm).toMatchObject({ choice: 'page-cache', estimates: undefined })
  expect(warm.reason).toContain('this host was not measured')
  await s.evict()
  expect(await prepared(s.all)).toMatchObject({ choice: 'uffd', estimates: undefined })
})

describe('the choice', () => {
  test.each(['page-cache', 'uffd'] as const)('is %s when it was asked for', async (backend) => {
    hostCosts()
    const s = await snapshot()
    if (backend === 'page-cache') await s.evict()
    const restore = await prepared({ ...s.all, backend })
    expect(restore).toMatchObject({ choice: backend, reason: 'it was asked for' })
    expect(restore.estimates).toBeDefined()
  })

  test.each([
    ['to record', { record: true }, /records each page/],
    ['for 2 MiB pages', { pageSize: 2097152 }, /2 MiB pages/],
  ] as const)('is a handler %s', async (_, options, reason) => {
    hostCosts()
    const s = await snapshot()
    for (const given of [s.all, s.files]) {
      const restore = await prepared({ ...given, ...options })
      expect(restore.choice).toBe('uffd')
      expect(restore.reason).toMatch(reason)
      await restore.close()
    }
  })

  test('is a handler for a working set of 2 MiB pages, also where that is in no file', async () => {
    const { files } = await snapshot()
    const workingSet = setOf(files.memoryFile, [1, 0], 2 ** 21)
    expect((await prepared({ ...files, workingSet })).choice).toBe('uffd')
  })

  test('is the page cache without a working set', async () => {
    hostCosts()
    const { files } = await snapshot()
    const restore = await prepared(files)
    expect(restore.memBackend).toEqual(file(files.memoryFile))
    expect(restore).toMatchObject({ residency: undefined, estimates: undefined })
    expect(restore.reason).toMatch(/^without a working set/)
    expect(await restore.prefetched).toMatchObject({ pages: 0, bytes: 0, complete: true })
  })

  test('is the page cache for a set of traces, which is brought there', async () => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const restore = await prepared({ ...s.all, workingSet: s.set })
    expect(restore.memBackend).toEqual(file(s.all.memoryFile))
    expect(restore.residency).toBeUndefined()
    expect(await restore.prefetched).toMatchObject({ pages: 403, complete: true })
    expect(residentPages(s.all.memoryFile)).toEqual([...order].sort((a, b) => a - b))
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
  })
})

describe('a working set that cannot be used', () => {
  const damage = (path: string, at: number) => {
    const bytes = readFileSync(path)
    bytes[at]! ^= 0xff
    writeFileSync(path, bytes)
  }
  type Snapshot = Awaited<ReturnType<typeof snapshot>>
  const cases: [string, (s: Snapshot) => object, object][] = [
    [
      'missing',
      () => ({ workingSet: newPath('nowhere.ws') }),
      { code: 'ERR_WORKING_SET_IO', syscall: 'open' },
    ],
    [
      'of another kind',
      ({ all }) => ({ workingSet: all.memoryFile }),
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'damaged in its header',
      ({ all }) => {
        damage(all.workingSet, 100)
        return {}
      },
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'damaged in its index',
      ({ all }) => {
        damage(all.workingSet, 4100)
        return {}
      },
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'for a memory of another size',
      () => ({ memoryFile: makeMemory(4097) }),
      { code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' },
    ],
    [
      'of traces of another memory',
      ({ set }) => ({ memoryFile: makeMemory(4097), workingSet: set }),
      { code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' },
    ],
  ]
  describe.each(cases)('as it is %s', (name, spoil, error) => {
    const isOnlySeenWhenUsed = name === 'damaged in its index'
    test.each(['warm', 'cold'])(
      'leads to the page cache and a warning, when that is %s',
      async (state) => {
        const s = await snapshot()
        const { onEvent, events } = eventLog()
        const options = { ...s.all, ...spoil(s), onEvent }
        if (state === 'cold') await s.evict()
        const restore = await prepared(options)
        if (state === 'warm' && isOnlySeenWhenUsed) {
          // Nothing is brought, so that nothing of it is used.
          expect(restore.memBackend).toEqual(file(options.memoryFile))
          expect(await restore.prefetched).toMatchObject({ bytes: 0, complete: true })
          expect(events).toEqual([])
          return
        }
        expect(restore.memBackend).toEqual(file(options.memoryFile))
        expect(await restore.prefetched).toMatchObject({ complete: false, error })
        expect(events).toEqual([{ type: 'warning', error: expect.objectContaining(error) }])
      },
    )

    test('is an error where that is asked for', async () => {
      const s = await snapshot()
      const { onEvent, events } = eventLog()
      const options = { ...s.all, ...spoil(s), onEvent, onBadWorkingSet: 'fail' } as const
      for (const backend of ['auto', 'page-cache', 'uffd'] as const) {
        expect(await failureOf(prepareRestore({ ...options, backend }))).toMatchObject(error)
      }
      expect(events).toEqual([])
      expect(existsSync(s.all.socketPath)).toBe(false)
    })

    test('is served on demand where a handler was asked for', async () => {
      const s = await snapshot()
      const { onEvent, events } = eventLog()
      const restore = await prepared({ ...s.all, ...spoil(s), onEvent, backend: 'uffd' })
      expect(restore.memBackend).toEqual(uffd(s.all.socketPath))
      expect(events.filter(({ type }) => type === 'warning')).toEqual([
        { type: 'warning', error: expect.objectContaining(error) },
      ])
    })
  })
})

describe.skipIf(process.arch !== 'x64')('a guest', () => {
  const touches = order.map((page, i) => ({ page, write: i % 3 === 0 }))

  test.each([
    ['page-cache', 'warm'],
    ['page-cache', 'cold'],
    ['uffd', 'warm'],
    ['uffd', 'cold'],
  ] as const)('finds its memory right by %s from a %s page cache', async (backend, state) => {
    const s = await snapshot()
    const guest = threadGuest(s.all.memoryFile, [...touches, 4095], {
      pause: ['ready'],
      userModeOnly: true,
    })
    await guest.event('ready')
    if (state === 'cold') await s.evict()
    const restore = await prepared({ ...s.all, backend })
    const { backend_type, backend_path } = restore.memBackend
    guest.go(backend_type === 'File' ? 'file' : `socket ${backend_path}`)
    expect(await guest.event('verified')).toMatchObject({ wrong: 0 })
    expect(await guest.exited).toEqual({ code: 0, signal: null })
    if (backend === 'uffd') {
      expect(await restore.handler!.closed).toMatchObject({ state: 'vm-exited' })
      expect(restore.handler!.stats().residualFaults).toBe(1)
    } else {
      expect(await restore.prefetched).toMatchObject({ pages: 400, complete: true })
    }
  })
})

describe('the disk images', () => {
  test.each(['uffd', 'page-cache'] as const)('are brought in beside %s', async (backend) => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const restore = await prepared({ ...s.all, backend })
    expect(await restore.disksPrefetched).toMatchObject({ complete: true })
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
    expect(residentPages(s.all.memoryFile).length > 300).toBe(backend === 'page-cache')
  })

  test('are brought in where only they are missing', async () => {
    const s = await snapshot({ disk: true })
    await evict(...s.all.diskImages!)
    const restore = await prepared(s.all)
    expect(restore.choice).toBe('page-cache')
    expect(await restore.prefetched).toMatchObject({ pages: 403, complete: true })
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
  })

  test.each(['uffd', 'page-cache'] as const)(
    'are left alone by %s where the working set has nothing of them',
    async (backend) => {
      const s = await snapshot()
      await s.evict()
      const image = makeDisk(2 ** 20)
      await evict(image)
      const { events, onEvent } = eventLog()
      const restore = await prepared({ ...s.all, diskImages: [image], backend, onEvent })
      await restore.disksPrefetched
      expect(events.filter(({ type }) => type === 'warning')).toEqual([])
      expect(residentPages(image)).toEqual([])
    },
  )

  test.each(['uffd', 'page-cache'] as const)(
    'are a warning beside %s where they are others',
    async (backend) => {
      const s = await snapshot({ disk: true })
      const { events, onEvent } = eventLog()
      const diskImages = [makeDisk(2 ** 21)]
      const restore = await prepared({ ...s.all, diskImages, backend, onEvent })
      const error = { code: 'ERR_SNAPSHOT_MISMATCH', path: diskImages[0] }
      expect(await restore.disksPrefetched).toMatchObject({ complete: false, error })
      expect(events).toContainEqual({ type: 'warning', error: expect.objectContaining(error) })
    },
  )
})

describe('the end', () => {
  test('of a handler ends its VM, and leaves no socket', async () => {
    const s = await snapshot()
    const waiting = await prepared({ ...s.all, backend: 'uffd' })
    expect(existsSync(s.all.socketPath)).toBe(true)
    await waiting.close()
    expect(existsSync(s.all.socketPath)).toBe(false)
    expect(await waiting.handler!.closed).toMatchObject({ state: 'closed' })

    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    {
      await using restore = await prepareRestore({ ...s.all, backend: 'uffd' })
      await vmm.handshake(restore.memBackend.backend_path)
      await restore.handler!.connected
    }
    expect(await vmm.exited).toMatchObject({ signal: 'SIGKILL' })
    expect(existsSync(s.all.socketPath)).toBe(false)
  })

  test('of a handler can leave its VM', async () => {
    const s = await snapshot()
    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    const restore = await prepared({ ...s.all, backend: 'uffd' })
    await vmm.handshake(s.all.socketPath)
    await restore.handler!.connected
    await restore.close({ vm: 'leave' })
    expect(await restore.handler!.closed).toMatchObject({ state: 'vm-left' })
  })

  test('of a prefetch comes with that of the restore, and again', async () => {
    const s = await snapshot()
    await s.evict()
    const restore = await prepared({ ...s.all, backend: 'page-cache' })
    await restore.close()
    expect(await restore.prefetched).toMatchObject({ complete: false })
    await restore.close()
    await restore[Symbol.asyncDispose]()
  })

  test.each(['uffd', 'page-cache'] as const)(
    "of %s lets go of the caller's signal",
    async (backend) => {
      const s = await snapshot()
      const { signal } = new AbortController()
      const restore = await prepared({ ...s.all, backend, signal, connectTimeoutMs: 500 })
      // Node 20 lets go of all but the last listener that goes with a signal of its own.
      await collectGarbage()
      await restore.handler?.closed.catch(() => {})
      if (backend === 'page-cache') await restore.prefetched
      await expect.poll(() => getEventListeners(signal, 'abort')).toEqual([])
    },
  )

  test('comes with the signal', async () => {
    const s = await snapshot({ disk: true })
    const reason = new Error('no longer needed')
    const aborted = prepareRestore({ ...s.all, signal: AbortSignal.abort(reason) })
    await expect(aborted).rejects.toBe(reason)
    for (const backend of ['uffd', 'page-cache'] as const) {
      await s.evict()
      const controller = new AbortController()
      const { signal } = controller
      const restore = await prepared({ ...s.all, backend, signal })
      controller.abort(reason)
      if (backend === 'uffd') await expect(restore.handler!.closed).rejects.toBe(reason)
      else expect(await restore.prefetched).toMatchObject({ complete: false })
      expect(await restore.disksPrefetched).toMatchObject({ complete: false })
      expect(existsSync(s.all.socketPath)).toBe(false)
    }
  })

  test('on an event that is told before there is a restore leaves the disk images alone', async () => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const caller = new AbortController()
    const restore = await prepared({
      ...s.all,
      backend: 'uffd',
      signal: caller.signal,
      onEvent: ({ type }) => type === 'listening' && caller.abort('enough'),
    })
    expect(await restore.disksPrefetched).toMatchObject({ complete: false })
    expect(residentPages(s.all.diskImages![0]!)).toEqual([])
    await expect(restore.handler!.closed).rejects.toBe('enough')
  })
})

describe('the model learns', () => {
  const learnt = (path: string, device: number) =>
    JSON.parse(readFileSync(path, 'utf8')).disks[device]

  test('from what came into the page cache', async () => {
    const path = hostCosts()
    const s = await snapshot({ pages: range(0, 600).map((i) => (i * 797) % 4096) })
    await s.evict()
    const restore = await prepared({ ...s.all, backend: 'page-cache' })
    const result = await restore.prefetched
    if (!('thereMs' in result)) throw new Error('expected a prefetch of the page cache')
    expect(result.extents).toBeGreaterThan(512)
    const { dev } = statSync(s.all.memoryFile)
    // Slower or faster than it was known to be, by so much in both.
    const { cachedBytesPerMs, extentUs } = costs.disk
    const pageMs = PAGE / cachedBytesPerMs
    const knownMs = (result.bytes / PAGE) * pageMs + result.extents * (extentUs / 1000 - pageMs)
    const slower = result.thereMs / knownMs
    await expect
      .poll(() => learnt(path, dev))
      .toEqual({
        cachedBytesPerMs: expect.closeTo(cachedBytesPerMs / slower, -2),
        extentUs: expect.closeTo(extentUs * slower, 3),
      })
  })

  test('nothing from one that has found most pages there', async () => {
    hostCosts()
    const pages = range(0, 2048).map((i) => 2 * i)
    const s = await snapshot({ pages })
    await s.evict()
    await prefetchPageCache({
      memoryFile: s.all.memoryFile,
      workingSet: setOf(s.all.memoryFile, pages.slice(0, 1500)),
    })
    const restore = await prepared({ ...s.all, backend: 'page-cache' })
    const result = await restore.prefetched
    if (!('thereMs' in result)) throw new Error('expected a prefetch of the page cache')
    // As many runs as make it learn otherwise.
    expect(result.extents).toBeGreaterThan(512)
    expect(result.residentPages).toBeGreaterThanOrEqual(1500)
    await setImmediate()
    const { dev } = statSync(s.all.memoryFile)
    expect((await hostModel()).diskCosts(dev)).toEqual(costs.disk)
  })

  test.each([
    [1, 64e6 / 100],
    [0.96, 64e6 / 100],
    [0.9, undefined],
  ])('from a handler that had to read a share of %f of its bytes', async (share, rate) => {
    hostCosts()
    const s = await snapshot()
    const { survey } = await planRestore(s.all)
    const prefetched = { complete: true, bytes: 64e6, fetchMs: 100 }
    learnFromHandler({ prefetched: Promise.resolve(prefetched) } as unknown as FaultHandler, {
      ...survey,
      missingBytes: share * 64e6,
    })
    await setImmediate()
    const { bytesPerMs } = (await hostModel()).diskCosts(survey.setDevice)!
    expect(bytesPerMs).toBeCloseTo(rate ?? costs.disk.bytesPerMs)
  })

  test('from what a handler has read', async () => {
    const path = hostCosts()
    const s = await snapshot({ pages: range(0, 4096) })
    await s.evict()
    const restore = await prepared({ ...s.all, backend: 'uffd' })
    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    await vmm.handshake(s.all.socketPath)
    expect(await restore.prefetched).toMatchObject({ pages: 4096, complete: true })
    const { dev } = statSync(s.all.workingSet)
    await expect.poll(() => learnt(path, dev)).toEqual({ bytesPerMs: expect.any(Number) })
    expect(learnt(path, dev).bytesPerMs).not.toBe(costs.disk.bytesPerMs)
  })

  test.each([
    ['damaged', '{'],
    ['of another kernel', { ...costs, kernel: '5.10.0' }],
  ])('nothing of a host whose file is %s', async (_, what) => {
    const path = hostCosts(what)
    const before = readFileSync(path, 'utf8')
    const s = await snapshot()
    await s.evict()
    const restore = await prepared({ ...s.all, backend: 'page-cache' })
    expect(restore.estimates).toBeUndefined()
    await restore.prefetched
    expect(readFileSync(path, 'utf8')).toBe(before)
  })
})

test('the JavaScript thread goes on meanwhile', async () => {
  hostCosts()
  const pages = 16384
  const memoryFile = makeMemory(pages)
  const workingSet = newPath('vm.ws')
  const touched = Uint32Array.from(range(0, pages).map((i) => (i * 797) % pages))
  const timesUs = Uint32Array.from(touched.keys())
  const trace = new Trace({ pageSize: PAGE, memoryBytes: pages * PAGE, pages: touched, timesUs })
  await WorkingSet.fromTraces([trace]).write(workingSet, { memoryFile })
  await evict(memoryFile, workingSet)
  let turns = 0
  let longest = 0
  let last = performance.now()
  const probe = setInterval(() => {
    turns++
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }, 1)
  onTestFinished(() => clearInterval(probe))
  const socketPath = newPath('s')
  const restore = await prepared({ memoryFile, workingSet, socketPath, backend: 'page-cache' })
  const before = turns
  const result = await restore.prefetched
  expect(result).toMatchObject({ pages, complete: true })
  await expect.poll(() => turns).toBeGreaterThan(before)
  // Far less than the reads take on any disk; a machine may be busy with something else.
  expect(longest).toBeLessThan(1000)
})

describe('misuse is a TypeError', () => {
  const good = { socketPath: '/nowhere/s', memoryFile: '/nowhere/m' }
  test.each([
    ['no options', undefined, /prepareRestore\(\) expects an options object/],
    ['no socket', { memoryFile: 'm' }, /"socketPath" of prepareRestore\(\)/],
    ['no memory file', { socketPath: 's' }, /"memoryFile" of prepareRestore\(\)/],
    ['an unknown backend', { ...good, backend: 'file' }, /"auto" or "uffd" or "page-cache", got/],
    ['unknown vCPUs', { ...good, vcpus: 'tcg' }, /"kvm" or "threads", got "tcg"/],
    ['an odd page size', { ...good, pageSize: 8192 }, /4096 or 2097152, got 8192/],
    ['one path for images', { ...good, diskImages: 'd' }, /"diskImages"/],
    ['another spelling', { ...good, diskimages: [] }, /did you mean "diskImages"\?/],
    ['another word', { ...good, back_end: 'uffd' }, /did you mean "backend"\?/],
    ['a recording without a handler', { ...good, backend: 'page-cache', record: true }, /record/],
    ['huge pages without one', { ...good, backend: 'page-cache', pageSize: 2097152 }, /2 MiB/],
  ])('for %s', async (_, options, message) => {
    const misuse = prepareRestore(options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })
})

test('a memory file that is not there is refused, whatever the choice', async () => {
  const s = await snapshot()
  const memoryFile = newPath('nowhere')
  for (const backend of ['auto', 'uffd', 'page-cache'] as const) {
    const restore = prepareRestore({ ...s.all, memoryFile, backend })
    expect(await failureOf(restore)).toMatchObject({ code: 'ERR_SOURCE_READ', path: memoryFile })
  }
})
