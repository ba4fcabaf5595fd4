import { readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { Survey } from '../../src/page-cache/residency.js'
import { choose, estimate, type Wishes } from '../../src/restore/choice.js'
import { HostModel } from '../../src/restore/host-model.js'
import { costs, hostCosts, withoutHostCosts } from '../support/host-costs.js'
import { newPath } from '../support/working-sets.js'

withoutHostCosts()

const warm: Survey = {
  pageSize: 4096,
  memoryBytes: 2 ** 28,
  memoryFileBytes: 2 ** 28,
  pages: 4000,
  extents: 1000,
  missingPages: 0,
  missingExtents: 0,
  missingBytes: 0,
  isVisible: true,
  disks: 0,
  memoryDevice: 1,
  setDevice: 2,
  windows: 1000,
  shareAround: 1,
  lookNs: undefined,
}
const cold: Survey = {
  ...warm,
  missingPages: 4000,
  missingExtents: 1000,
  missingBytes: 4000 * 4096,
}
const wishes: Wishes = {
  forced: undefined,
  record: false,
  workingSet: 'file',
  pageSize: 0,
}
const model = (what: unknown = costs) => HostModel.load(hostCosts(what))

describe('an estimate', () => {
  const readMs = (4000 * 4096) / 1e6
  // Bytes, and for a run what a page takes above its bytes.
  const cachedMs = (4000 * 4096) / 8e5
  const runsMs = (runs: number) => cachedMs + runs * (0.1 - 4096 / 8e5)
  // The longer of touching and reading, and a part of the shorter.
  test.each([
    ['threads', 'warm', warm, { ms: 23, readMs: 0 }, { ms: 5.5, readMs: 0 }],
    [
      'threads',
      'cold',
      cold,
      { ms: 23 + 0.25 * readMs, readMs },
      { ms: runsMs(1000) + 5.5 / 4, readMs: runsMs(1000) },
    ],
    ['kvm', 'warm', warm, { ms: 29, readMs: 0 }, { ms: 10, readMs: 0 }],
    [
      'kvm',
      'cold',
      { ...cold, missingExtents: 10 },
      { ms: 29 + 0.25 * readMs, readMs },
      { ms: runsMs(10) + 10 / 4, readMs: runsMs(10) },
    ],
  ] as const)(
    'for %s and a %s page cache follows from the costs',
    async (kind, _, survey, uffd, cache) => {
      const estimates = estimate(survey, await model(), kind)!
      expect(estimates.uffd.ms).toBeCloseTo(uffd.ms)
      expect(estimates.uffd.readMs).toBeCloseTo(uffd.readMs)
      expect(estimates['page-cache'].ms).toBeCloseTo(cache.ms)
      expect(estimates['page-cache'].readMs).toBeCloseTo(cache.readMs)
    },
  )

  test.each([
    // Passed as fast as what lies in pages by itself, or faster.
    [warm, 50, 5.5],
    [warm, 80, 5.5],
    [warm, 1e-9, 1.5],
    [warm, 25, (5.5 + 1.5) / 2],
    // What is to be read comes in pages, and the other half is in large pieces.
    [{ ...warm, missingPages: 2000 }, 1e-9, (5.5 + 1.5) / 2],
    [{ ...warm, missingPages: 4000 }, 1e-9, 5.5],
  ])('has what is mapped from pieces of the size that is there', async (survey, lookNs, ms) => {
    const disks = { 1: { cachedBytesPerMs: 1e12 } }
    const estimates = estimate({ ...survey, lookNs }, await model({ ...costs, disks }), 'threads')!
    expect(estimates['page-cache'].ms).toBeCloseTo(ms)
  })

  test.each([
    [1, 0.5],
    [0.5, 0.25],
    // At the least what the set has there.
    [0, 0.0625],
  ])('has windows of small pieces by the share of %f that is there', async (shareAround, ms) => {
    const part = { ...warm, windows: 2000, shareAround }
    const more = { ...part, windows: 2000 + 1000, pages: 6000 }
    const now = await model()
    const [before, after] = [part, more].map((survey) => estimate(survey, now, 'threads')!)
    expect(after!['page-cache'].ms - before!['page-cache'].ms - 2).toBeCloseTo(ms)
  })

  test('is no puzzle for a set without pages', async () => {
    const empty = { ...warm, pages: 0, extents: 0, windows: 0 }
    const { uffd, 'page-cache': cache } = estimate(empty, await model(), 'threads')!
    expect(uffd.ms).toBeCloseTo(2)
    expect(cache.ms).toBeCloseTo(1)
  })

  test('counts what a fault maps at once for a mapping, and extents for a handler', async () => {
    const before = estimate(warm, await model(), 'threads')!
    const windows = estimate({ ...warm, windows: 3000 }, await model(), 'threads')!
    const extents = estimate({ ...warm, extents: 3000 }, await model(), 'threads')!
    expect(windows['page-cache'].ms - before['page-cache'].ms).toBeCloseTo(1)
    expect(windows.uffd).toEqual(before.uffd)
    expect(extents.uffd.ms - before.uffd.ms).toBeCloseTo(2)
    expect(extents['page-cache']).toEqual(before['page-cache'])
  })

  test('has the index of a working set that is read for the first time', async () => {
    const known = estimate(cold, await model(), 'kvm')!
    const fresh = estimate(cold, await model(), 'kvm', false)!
    expect(fresh.uffd.ms - known.uffd.ms).toBeCloseTo(2)
    expect(fresh['page-cache']).toEqual(known['page-cache'])
  })

  test('has the costs of each file on its own disk', async () => {
    const disks = {
      1: { extentUs: 500 },
      2: { bytesPerMs: 4096 },
    }
    const estimates = estimate(cold, await model({ ...costs, disks }), 'kvm')!
    expect(estimates.uffd.readMs).toBeCloseTo(4000)
    expect(estimates['page-cache'].readMs).toBeCloseTo(runsMs(1000) + 1000 * 0.4)
  })

  test('takes the costs of threads where KVM was not measured', async () => {
    const { threads } = costs.guests
    const without = await model({ ...costs, guests: { threads } })
    expect(estimate(warm, without, 'kvm')).toEqual(estimate(warm, await model(), 'threads'))
  })

  test('is none on a host that was not measured', async () => {
    expect(estimate(warm, await HostModel.load(newPath('nowhere')), 'kvm')).toBeUndefined()
    expect(estimate(warm, await model({ ...costs, guests: {} }), 'threads')).toBeUndefined()
  })
})

describe('the choice', () => {
  const of = (uffd: number, cache: number, readMs = 0) => ({
    uffd: { ms: uffd, readMs: 0 },
    'page-cache': { ms: cache, readMs },
  })

  test.each([
    ['what was asked for', { forced: 'page-cache', record: true }, cold, 'page-cache', /asked for/],
    ['a handler to record', { record: true }, warm, 'uffd', /records each page/],
    ['a handler for pages of 2 MiB', { pageSize: 2097152 }, warm, 'uffd', /2 MiB pages/],
    ['a handler for a set of such', {}, { ...warm, pageSize: 2097152 }, 'uffd', /2 MiB pages/],
    [
      'the kernel without a set',
      { workingSet: 'none' },
      cold,
      'page-cache',
      /without a working set/,
    ],
    [
      'the kernel without a good one',
      { workingSet: 'refused' },
      cold,
      'page-cache',
      /cannot be used/,
    ],
    ['the kernel for bare places', { workingSet: 'places' }, cold, 'page-cache', /in no file/],
  ] as const)('is %s, whatever it costs', (_, wish, survey, backend, reason) => {
    for (const estimates of [of(1, 100), of(100, 1), undefined]) {
      expect(choose({ ...wishes, ...wish }, survey, estimates)).toEqual({
        backend,
        reason: expect.stringMatching(reason),
      })
    }
  })

  test.each([
    [94, 100, 'uffd'],
    [96, 100, 'page-cache'],
    [100, 100, 'page-cache'],
    [110, 100, 'page-cache'],
  ])('between a handler of %i ms and a page cache of %i ms is %s', (uffd, cache, backend) => {
    expect(choose(wishes, cold, of(uffd, cache)).backend).toBe(backend)
  })

  test('says its figures in a sentence', () => {
    expect(choose(wishes, { ...cold, missingPages: 3000 }, of(12.34, 100.4, 99)).reason).toBe(
      '25 % of 16 MiB of working set in the page cache: a fault handler is estimated at 12 ms, the kernel at 100 ms, 99 ms of it reads',
    )
    expect(choose(wishes, { ...warm, pages: 300 }, of(5.55, 1.25)).reason).toBe(
      '100 % of 1.2 MiB of working set in the page cache: the kernel is estimated at 1.3 ms, a fault handler at 5.5 ms',
    )
  })

  test.each([
    [0, 'page-cache'],
    [200, 'page-cache'],
    [201, 'uffd'],
    [4000, 'uffd'],
  ])(
    'on a host that was not measured, with %i of 4000 pages missing, is %s',
    (missingPages, backend) => {
      const { backend: chosen, reason } = choose(wishes, { ...warm, missingPages }, undefined)
      expect(chosen).toBe(backend)
      expect(reason).toMatch(/^\d+ % of 16 MiB .* not measured \(measureHost\(\)\)$/)
    },
  )
})

describe('the costs of a host', () => {
  const kvm = costs.guests.kvm!
  const withKvm = (other: object) => ({ ...costs, guests: { kvm: { ...kvm, ...other } } })

  test.each([
    ['no JSON', '{'],
    ['nothing', 'null'],
    ['something else', '[]'],
    ['those of another kernel', { ...costs, kernel: '5.10.0' }],
    ['those of other processors', { ...costs, cpu: '64 × another' }],
    ['a page that costs nothing', withKvm({ installed: { ...kvm.installed, pageUs: 0 } })],
    [
      'a start before its beginning',
      withKvm({ mapped: { ...kvm.mapped, large: { ...kvm.mapped.large, fixedMs: -1 } } }),
    ],
    ['half of a guest', withKvm({ installed: undefined })],
    ['one size of pieces', withKvm({ mapped: { small: kvm.mapped.small } })],
    ['costs of before', withKvm({ mapped: kvm.mapped.small })],
    ['a disk of words', { ...costs, disks: { 7: { bytesPerMs: 'fast' } } }],
    ['a disk with free runs', { ...costs, disk: { ...costs.disk, extentUs: 0 } }],
    ['a free index', { ...costs, indexUs: 0 }],
    ['no look at small pieces', { ...costs, smallLookNs: undefined }],
    ['no disks', { ...costs, disks: undefined }],
  ])('are as none where their file has %s', async (_, what) => {
    expect((await model(what)).costs).toBeUndefined()
  })

  test('are believed as they were kept', async () => {
    expect((await model()).costs).toEqual(costs)
  })

  test('are refreshed by what restores show of a disk, and kept', async () => {
    const path = hostCosts()
    const model = await HostModel.load(path)
    model.sawDisk(7, { extentUs: 200 })
    // The first sight of a disk counts, the others move it; of the rest stays what was measured.
    expect(model.diskCosts(7)).toEqual({ ...costs.disk, extentUs: 200 })
    model.sawDisk(7, { extentUs: 300, bytesPerMs: 2e6 })
    const seen = model.diskCosts(7)!
    expect(seen.extentUs).toBeCloseTo(220)
    expect(seen.bytesPerMs).toBeCloseTo(2e6)
    for (const nonsense of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      model.sawDisk(7, { extentUs: nonsense, bytesPerMs: nonsense })
      model.sawDisk(9, { extentUs: nonsense })
    }
    expect(model.diskCosts(7)).toEqual(seen)
    for (const device of [8, 9]) expect(model.diskCosts(device)).toEqual(costs.disk)
    await expect
      .poll(() => JSON.parse(readFileSync(path, 'utf8')).disks)
      .toEqual({ 7: { extentUs: seen.extentUs, bytesPerMs: seen.bytesPerMs } })
    expect((await HostModel.load(path)).costs).toEqual(model.costs)
  })

  test('are taken from another process that has measured since, and not written over', async () => {
    const path = hostCosts()
    const model = await HostModel.load(path)
    model.sawDisk(7, { extentUs: 200 })
    const newer = {
      ...costs,
      measuredAt: '2026-11-26T12:00:00.000Z',
      disks: { 8: { extentUs: 5 } },
    }
    writeFileSync(path, JSON.stringify(newer))
    await model.refresh()
    expect(model.costs).toMatchObject({ measuredAt: newer.measuredAt })
    expect(model.diskCosts(7)!.extentUs).toBe(200)
    expect(model.diskCosts(8)!.extentUs).toBe(5)
    await expect
      .poll(() => JSON.parse(readFileSync(path, 'utf8')))
      .toEqual({ ...newer, disks: { ...newer.disks, 7: { extentUs: 200 } } })
  })

  test('stay none where nothing was measured, whatever is seen', async () => {
    const path = newPath('nowhere')
    const model = await HostModel.load(path)
    model.sawDisk(7, { extentUs: 200 })
    expect(model.costs).toBeUndefined()
    writeFileSync(path, JSON.stringify(costs))
    expect((await HostModel.load(path)).costs).toEqual(costs)
  })
})
