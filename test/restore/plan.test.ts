import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import {
  planRestore,
  prefetchPageCache,
  recordPageCache,
  restore,
  Trace,
  WorkingSet,
} from '../../src/index.js'
import { planStoreRestore } from '../../src/restore/plan.js'
import { calibrated, uncalibrated } from '../support/calibration.js'
import { residentPages, unmappableFile, unmappableSet } from '../support/page-cache.js'
import {
  file,
  onDisk,
  order,
  planAndRestore,
  restored,
  snapshot,
  uffd,
} from '../support/restoring.js'
import { failureOf, newPath, setOf } from '../support/working-sets.js'

uncalibrated()

describe('a plan', () => {
  test('maps what is in the page cache', async () => {
    calibrated()
    const s = await snapshot()
    const restore = await restored(s.all)
    expect(restore.memBackend).toEqual(file(s.all.memoryFile))
    expect(restore.backend).toBe('page-cache')
    expect(restore.handler).toBeUndefined()
    expect(existsSync(s.all.socketPath)).toBe(false)
    expect(restore.reason).toMatch(
      /^100 % of 1\.6 MiB of working set in the page cache; for a guest/,
    )
    expect(restore.plan).toMatchObject({
      backend: 'page-cache',
      reason: restore.reason,
      residency: { pageCount: 400, missingPageCount: 0, isVisible: true },
      refusal: undefined,
      isWorkingSetMissing: false,
      diskImages: [],
      record: false,
    })
    expect(restore.plan.decidedMs).toBeGreaterThan(0)
    const result = { pageCount: 400, residentPageCount: 400, bytes: 0, complete: true }
    expect(await restore.prefetched).toMatchObject(result)
  })

  test('has a handler install what is on the disk', async () => {
    calibrated()
    const s = await snapshot()
    await s.evict()
    const restore = await restored(s.all)
    expect(restore.memBackend).toEqual(uffd(s.all.socketPath))
    expect(restore.backend).toBe('uffd')
    expect(restore.handler?.socketPath).toBe(s.all.socketPath)
    expect(restore.reason).toMatch(/ a fault handler reads the rest faster$/)
    expect(restore.plan.residency!.missingPageCount).toBeGreaterThan(360)
    expect(await restore.disksPrefetched).toBeUndefined()
  })

  test.skipIf(!existsSync(unmappableFile))(
    'has a handler serve a memory file that cannot be mapped (needs transparent huge pages)',
    async () => {
      const workingSet = await unmappableSet()
      const snapshot = { memoryFile: unmappableFile }
      for (const options of [{}, { workingSet: newPath('nowhere.ws') }, { workingSet }]) {
        const plan = await planRestore({ snapshot, ...options })
        const reason = expect.stringMatching(/^the file system of the memory file has no mappings/)
        const isWorkingSetMissing = 'workingSet' in options && options.workingSet !== workingSet
        const expected = { backend: 'uffd', reason, residency: undefined, isWorkingSetMissing }
        expect(plan).toMatchObject(expected)
      }
      const error = { code: 'ERR_SOURCE_READ', syscall: 'mmap', errno: -constants.errno.ENODEV }
      const failure = await failureOf(prefetchPageCache({ snapshot, workingSet }))
      expect(failure).toMatchObject({ ...error, path: unmappableFile })
      expect(await failureOf(recordPageCache({ snapshot }))).toMatchObject(error)
    },
  )

  test('is for a guest of KVM that writes unless it is known otherwise', async () => {
    calibrated()
    const s = await snapshot()
    const { memoryFile, workingSet } = s.all
    const backendFor = async (options: object) =>
      (await planRestore({ snapshot: { memoryFile }, workingSet, ...options })).backend
    expect(await backendFor({})).toBe('uffd')
    expect(await backendFor({ vcpus: 'threads' })).toBe('page-cache')
    const { pageSize, memoryBytes, pages, timesUs } = s.set.order
    for (const [writtenShare, backend] of [
      [0, 'page-cache'],
      [0.5, 'uffd'],
    ] as const) {
      const trace = new Trace({ pageSize, memoryBytes, pages, timesUs, writtenShare })
      await WorkingSet.fromTraces([trace]).write(workingSet, { snapshot: { memoryFile } })
      expect(await backendFor({})).toBe(backend)
      expect(await backendFor({ workingSet: await WorkingSet.read(workingSet) })).toBe(backend)
    }
  })

  test('changes nothing, and may be made again and carried out later', async () => {
    const s = await snapshot()
    await s.evict()
    const { memoryFile, workingSet } = s.all
    const make = () => planRestore({ snapshot: { memoryFile }, workingSet })
    const [plan] = await Promise.all([make(), make()])
    expect(residentPages(memoryFile)).toEqual([])
    expect(Object.isFrozen(plan)).toBe(true)
    await using restored = await restore(plan, { socketPath: s.all.socketPath })
    expect(restored.memBackend).toEqual(uffd(s.all.socketPath))
    expect(restored.plan).toBe(plan)
  })

  test('on a host without a calibration goes by the page cache', async () => {
    const s = await snapshot()
    const warm = await restored(s.all)
    expect(warm.backend).toBe('page-cache')
    expect(warm.reason).toContain('this host is not calibrated')
    await s.evict()
    expect((await restored(s.all)).backend).toBe('uffd')
  })
})

describe('its backend', () => {
  test.each(['page-cache', 'uffd'] as const)('is %s when it was asked for', async (backend) => {
    calibrated()
    const s = await snapshot()
    if (backend === 'page-cache') await s.evict()
    const restore = await restored({ ...s.all, backend })
    expect(restore).toMatchObject({ backend: backend, reason: 'it was asked for' })
  })

  test.each([
    ['to record', { record: true }, /records each page/],
    ['for 2 MiB pages', { pageSize: 2097152 }, /2 MiB pages/],
  ] as const)('is a handler %s', async (_, options, reason) => {
    calibrated()
    const s = await snapshot()
    for (const given of [s.all, s.files]) {
      const restore = await restored({ ...given, ...options })
      expect(restore.backend).toBe('uffd')
      expect(restore.reason).toMatch(reason)
      await restore.close()
    }
  })

  test('is a handler for a working set of 2 MiB pages, also where that is in no file', async () => {
    const { files } = await snapshot()
    const workingSet = setOf(files.memoryFile, [1, 0], 2 ** 21)
    expect((await restored({ ...files, workingSet })).backend).toBe('uffd')
  })

  test('is the page cache without a working-set file yet, and the reason names it', async () => {
    const { files, folder } = await snapshot()
    const workingSet = join(folder, 'no.ws')
    const missing = `there is no working-set file ${workingSet} yet`
    const restore = await restored({ ...files, workingSet })
    expect(restore.reason).toMatch(/^without a working set/)
    expect(restore.reason.endsWith(`; ${missing}`)).toBe(true)
    expect(await restore.prefetched).toMatchObject({ pageCount: 0, complete: true })
    const named = await planRestore({
      snapshot: { memoryFile: files.memoryFile },
      workingSet,
      backend: 'uffd',
    })
    expect(named.reason).toBe(`it was asked for; ${missing}`)
  })

  test('is the page cache without a working set', async () => {
    calibrated()
    const { files } = await snapshot()
    const restore = await restored(files)
    expect(restore.memBackend).toEqual(file(files.memoryFile))
    expect(restore.handler).toBeUndefined()
    expect(restore.plan.residency).toBeUndefined()
    expect(restore.reason).toMatch(/^without a working set/)
    expect(await restore.prefetched).toMatchObject({ pageCount: 0, bytes: 0, complete: true })
  })

  test('is the page cache for a set of traces, which is brought there', async () => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const restore = await restored({ ...s.all, workingSet: s.set })
    expect(restore.memBackend).toEqual(file(s.all.memoryFile))
    expect(restore.plan.residency).toBeUndefined()
    expect(await restore.prefetched).toMatchObject({ pageCount: 403, complete: true })
    expect(residentPages(s.all.memoryFile)).toEqual([...order].sort((a, b) => a - b))
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
  })
})

describe('misuse is a TypeError', () => {
  const nowhere = { memoryFile: '/nowhere/m' }
  test.each([
    ['no options', undefined, /planRestore\(\) expects an options object/],
    ['no snapshot', {}, /"snapshot" of planRestore\(\)/],
    ['no memory file', { snapshot: {} }, /"memoryFile" of the snapshot of planRestore\(\)/],
    [
      'an unknown backend',
      { snapshot: nowhere, backend: 'file' },
      /"auto", "uffd" or "page-cache", got/,
    ],
    ['unknown vCPUs', { snapshot: nowhere, vcpus: 'tcg' }, /"kvm" or "threads", got "tcg"/],
    ['an odd page size', { snapshot: nowhere, pageSize: 8192 }, /4096 or 2097152, got 8192/],
    ['one path for images', { snapshot: { ...nowhere, diskImages: 'd' } }, /"diskImages"/],
    ['another spelling', { snapshot: { ...nowhere, diskimages: [] } }, /did you mean "diskImages"/],
    ['another word', { snapshot: nowhere, back_end: 'uffd' }, /did you mean "backend"\?/],
    [
      'a recording without a handler',
      { snapshot: nowhere, backend: 'page-cache', record: true },
      /record/,
    ],
    [
      'huge pages without one',
      { snapshot: nowhere, backend: 'page-cache', pageSize: 2097152 },
      /2 MiB/,
    ],
  ])('of planRestore() for %s', async (_, options, message) => {
    const misuse = planRestore(options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })

  test.each([
    ['no plan', () => ({}), {}, /restore\(\) expects a plan of planRestore\(\)/],
    ['a plan that was changed', (plan: object) => ({ ...plan }), {}, /expects a plan/],
    ['no socket for a handler', (plan: object) => plan, {}, /needs a "socketPath"/],
    ['an unknown option', (plan: object) => plan, { socketpath: 's' }, /mean "socketPath"\?/],
    ['what the plan has', (plan: object) => plan, { memoryFile: 'm' }, /no option "memoryFile"/],
    ['an empty path', (plan: object) => plan, { socketPath: 's', vmmPath: '' }, /"vmmPath"/],
  ])('of restore() for %s', async (_, spoil, options, message) => {
    const { files } = await snapshot()
    const { memoryFile } = files
    const plan = await planRestore({ snapshot: { memoryFile }, backend: 'uffd' })
    const misuse = restore(spoil(plan) as never, options as never)
    await expect(misuse).rejects.toThrow(TypeError)
    await expect(misuse).rejects.toThrow(message)
  })
})

test('a memory file that is not there is refused, whatever the choice', async () => {
  const s = await snapshot()
  const memoryFile = newPath('nowhere')
  for (const backend of ['auto', 'uffd', 'page-cache'] as const) {
    const restore = planAndRestore({ ...s.all, memoryFile, backend })
    expect(await failureOf(restore)).toMatchObject({ code: 'ERR_SOURCE_READ', path: memoryFile })
  }
})

describe('a plan of a store', () => {
  const mean = (ms: number) => ({ ms, weight: 3 })
  const both = (ms: number) => ({ warm: mean(ms), cold: mean(ms) })
  const responses = { uffd: both(40), 'page-cache': both(30) }

  test('goes by earlier responses, and records only where a fault handler serves anyway', async () => {
    const s = await snapshot()
    const { memoryFile, workingSet } = s.all
    const options = { snapshot: { memoryFile }, workingSet }
    const planOf = (more: object, learned: object) =>
      planStoreRestore('store.restore()', { ...options, ...more }, learned)
    await s.evict()
    expect(await planOf({}, { responses })).toMatchObject({
      plan: { backend: 'page-cache', record: false, automatic: { backend: 'page-cache' } },
      isTrial: false,
      warmth: 'cold',
    })
    expect(await planOf({}, {})).toMatchObject({
      plan: { backend: 'uffd', record: true },
      isTrial: false,
      warmth: 'cold',
    })
    expect(await planOf({}, { responses, tryOther: true })).toMatchObject({
      plan: {
        backend: 'uffd',
        record: true,
        reason: expect.stringMatching(/^a trial of a fault handler, although the page cache /),
        automatic: { backend: 'page-cache' },
      },
      isTrial: true,
    })
    expect(await planOf({ record: true }, { responses, tryOther: true })).toMatchObject({
      plan: {
        backend: 'uffd',
        record: true,
        reason: expect.stringMatching(/^a fault handler rec/),
      },
      isTrial: false,
    })
    expect(await planOf({ backend: 'page-cache' }, { tryOther: true })).toMatchObject({
      plan: { backend: 'page-cache', record: false, reason: 'it was asked for' },
      isTrial: false,
    })
    expect(await planOf({ workingSet: undefined }, { responses, tryOther: true })).toMatchObject({
      plan: { backend: 'page-cache', record: false },
      isTrial: false,
      warmth: undefined,
    })
    await expect(planOf({ record: true, backend: 'page-cache' }, {})).rejects.toThrow(
      /^store\.restore\(\) needs a fault handler for record: true/,
    )
    await expect(planOf({ snapshot: undefined }, {})).rejects.toThrow(TypeError)
  })

  test('is carried out like any other, and its handler has a trace', async () => {
    const s = await snapshot()
    await s.evict()
    const { memoryFile, workingSet, socketPath } = s.all
    const options = { snapshot: { memoryFile }, workingSet }
    const { plan } = await planStoreRestore('store.restore()', options, {})
    await using restored = await restore(plan, { socketPath })
    expect(() => restored.handler?.stopRecording()).toThrow(
      expect.objectContaining({ code: 'ERR_CLOSED' }),
    )
  })
})
