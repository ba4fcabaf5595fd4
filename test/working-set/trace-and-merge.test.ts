import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/working-set/working-set.js'

const MEMORY = 1 << 20
const PAGES = MEMORY / 4096

const trace = (
  pages: readonly number[],
  timesUs: readonly number[] = pages.map((_, i) => i * 10),
) =>
  new Trace({
    pageSize: 4096,
    memoryBytes: MEMORY,
    pages: Uint32Array.from(pages),
    timesUs: Uint32Array.from(timesUs),
  })

const orderOf = (set: WorkingSet) => [...set.order.pages]
const byAddress = (pages: readonly number[]) => [...pages].sort((a, b) => a - b)

/** A run: some pages of the memory, none twice, in some order. */
const runs = fc
  .uniqueArray(fc.nat(PAGES - 1), { maxLength: 60 })
  .chain((pages) =>
    fc
      .array(fc.nat(1_000_000), { minLength: pages.length, maxLength: pages.length })
      .map((times) => trace(pages, times)),
  )

describe('a trace', () => {
  const fields = {
    pageSize: 4096,
    memoryBytes: MEMORY,
    pages: Uint32Array.of(1, 2),
    timesUs: Uint32Array.of(0, 5),
  }
  test.each<[string, object, string]>([
    ['a page size that no guest has', { pageSize: 8192 }, '"pageSize"'],
    ['a memory that is no multiple of 4 KiB', { memoryBytes: 4097 }, '"memoryBytes"'],
    ['a memory that is too large', { memoryBytes: 2 ** 45 }, '"memoryBytes"'],
    [
      'a memory that is no multiple of its page',
      { pageSize: 2097152 },
      'memoryBytes to be a multiple of pageSize, 2097152',
    ],
    ['pages in another array', { pages: [1, 2] }, '"pages"'],
    ['fewer times than pages', { timesUs: Uint32Array.of(1) }, '1 times for 2 pages'],
    [
      'a page outside the memory',
      { pages: Uint32Array.of(1, PAGES) },
      'Expected pages below 256, the end of the memory, got page 256',
    ],
    ['a page twice', { pages: Uint32Array.of(7, 7) }, 'Expected each page once, got page 7 twice'],
    [
      'a misspelled field',
      { pagesize: 1 },
      'Trace has no field "pagesize": did you mean "pageSize"?',
    ],
  ])('refuses %s', (_, change, sentence) => {
    expect(() => new Trace({ ...fields, ...change } as never)).toThrow(TypeError)
    expect(() => new Trace({ ...fields, ...change } as never)).toThrow(sentence)
  })

  test('finds a page that is there twice wherever it is', () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.nat(2 ** 24 - 1), { minLength: 1 }),
        fc.nat(),
        (pages, pick) => {
          const make = (list: number[]) =>
            new Trace({
              pageSize: 4096,
              memoryBytes: 2 ** 36,
              pages: Uint32Array.from(list),
              timesUs: new Uint32Array(list.length),
            })
          make(pages)
          expect(() => make([...pages, pages[pick % pages.length]!])).toThrow('twice')
        },
      ),
    )
  })
})

describe('a working set of traces', () => {
  test('keeps the order of a single run', () => {
    const set = WorkingSet.fromTraces([trace([9, 3, 200, 4])])
    expect(orderOf(set)).toEqual([9, 3, 200, 4])
    expect([...set.order.timesUs]).toEqual([0, 10, 20, 30])
    expect(set).toMatchObject({ pageCount: 4, bytes: 16384, pageSize: 4096, memoryBytes: MEMORY })
  })

  test('keeps only what every run has, unless minRuns is lower', () => {
    const all = [trace([1, 2, 3]), trace([2, 3, 4]), trace([3, 9, 2])]
    expect(orderOf(WorkingSet.fromTraces(all))).toEqual([2, 3])
    expect(byAddress(orderOf(WorkingSet.fromTraces(all, { minRuns: 1 })))).toEqual([1, 2, 3, 4, 9])
    expect(byAddress(orderOf(WorkingSet.fromTraces(all, { minRuns: 2 })))).toEqual([2, 3])
    expect(WorkingSet.fromTraces(all).runCount).toBe(3)
  })

  test('is not led astray by a run that had other things to do first', () => {
    const noise = Array.from({ length: 100 }, (_, i) => 100 + i)
    const set = WorkingSet.fromTraces([
      trace([1, 2, 3]),
      trace([...noise, 1, 2, 3]),
      trace([3, 1, 2]),
    ])
    expect(orderOf(set)).toEqual([1, 2, 3])
  })

  test('goes by places, not by how fast a host was', () => {
    const slow = trace([5, 6, 7], [1_000, 50_000, 900_000])
    const fast = trace([5, 6, 7], [1, 2, 3])
    const other = trace([7, 5, 6], [1, 2, 3])
    expect(orderOf(WorkingSet.fromTraces([slow, fast, other]))).toEqual([5, 6, 7])
    expect([...WorkingSet.fromTraces([slow, fast, other]).order.timesUs]).toEqual([2, 3, 3])
  })

  test('may be empty', () => {
    const set = WorkingSet.fromTraces([trace([1]), trace([2])])
    expect(set).toMatchObject({ pageCount: 0, bytes: 0, extents: [] })
    expect(set.describe()).toMatchObject({ share: 0, runLengths: [], lastTouchUs: 0 })
  })

  test('of one run, or of the same run many times, is that run', () => {
    fc.assert(
      fc.property(runs, fc.integer({ min: 1, max: 4 }), (run, times) => {
        const set = WorkingSet.fromTraces(Array.from({ length: times }, () => run))
        expect(orderOf(set)).toEqual([...run.pages])
        expect([...set.order.timesUs]).toEqual([...run.timesUs])
      }),
    )
  })

  test('has the pages of minRuns runs, whatever the order of the runs', () => {
    const some = fc.array(runs, { minLength: 1, maxLength: 5 })
    fc.assert(
      fc.property(some, fc.nat(), (all, pick) => {
        const minRuns = 1 + (pick % all.length)
        const set = WorkingSet.fromTraces(all, { minRuns })
        const count = (page: number) => all.filter(({ pages }) => pages.includes(page)).length
        const want = [...new Set(all.flatMap(({ pages }) => [...pages]))].filter(
          (page) => count(page) >= minRuns,
        )
        expect(byAddress(orderOf(set))).toEqual(byAddress(want))
        const reversed = WorkingSet.fromTraces([...all].reverse(), { minRuns })
        expect(orderOf(reversed)).toEqual(orderOf(set))
      }),
    )
  })

  test('has extents by address that cover its pages, with the lowest rank of each', () => {
    fc.assert(
      fc.property(runs, (run) => {
        const set = WorkingSet.fromTraces([run])
        const order = orderOf(set)
        const covered = set.extents.flatMap(({ firstPage, pageCount }) =>
          Array.from({ length: pageCount }, (_, i) => firstPage + i),
        )
        expect(covered).toEqual(byAddress(order))
        set.extents.forEach(({ firstPage, pageCount, rank }, i) => {
          const ranks = Array.from({ length: pageCount }, (_, at) => order.indexOf(firstPage + at))
          expect(rank).toBe(Math.min(...ranks))
          const before = set.extents[i - 1]
          if (before) expect(before.firstPage + before.pageCount).toBeLessThan(firstPage)
        })
      }),
    )
  })

  test('of a 2 MiB guest counts pages of 4 KiB', () => {
    const huge = new Trace({
      pageSize: 2097152,
      memoryBytes: 64 << 20,
      pages: Uint32Array.of(9, 3, 4),
      timesUs: Uint32Array.of(1, 2, 3),
    })
    const set = WorkingSet.fromTraces([huge])
    expect(set).toMatchObject({ pageSize: 2097152, pageCount: 1536, bytes: 6 << 20 })
    expect(orderOf(set)).toEqual([9, 3, 4])
    expect(set.extents).toEqual([
      { firstPage: 1536, pageCount: 1024, rank: 512 },
      { firstPage: 4608, pageCount: 512, rank: 0 },
    ])
  })

  test('describes the lengths of its extents', () => {
    const set = WorkingSet.fromTraces([trace([1, 10, 11, 20, 21, 22, 30, 40, 41, 42, 43])])
    expect(set.describe()).toEqual({
      pageSize: 4096,
      memoryBytes: MEMORY,
      runCount: 1,
      pageCount: 11,
      bytes: 45056,
      share: 11 / PAGES,
      extentCount: 5,
      lastTouchUs: 100,
      runLengths: [
        { fromPages: 1, toPages: 1, extentCount: 2, pageCount: 2 },
        { fromPages: 2, toPages: 3, extentCount: 2, pageCount: 5 },
        { fromPages: 4, toPages: 7, extentCount: 1, pageCount: 4 },
      ],
    })
  })

  test('is not for the engine before it is in a file', async () => {
    const set = WorkingSet.fromTraces([trace([1])])
    expect(set.manifest).toBeUndefined()
    await expect(set.verify({ memoryFile: '/dev/null' })).rejects.toThrow(TypeError)
  })
})

describe('misuse', () => {
  const other = new Trace({
    pageSize: 4096,
    memoryBytes: 2 * MEMORY,
    pages: new Uint32Array(),
    timesUs: new Uint32Array(),
  })
  test.each<[string, () => unknown, string]>([
    ['no traces', () => WorkingSet.fromTraces([]), 'at least one trace'],
    [
      'things that are no traces',
      () => WorkingSet.fromTraces([{}] as never),
      'the field "pageSize" of Trace',
    ],
    [
      'a trace that is not in an array',
      () => WorkingSet.fromTraces(trace([1]) as never),
      'expects an array of traces, got Trace',
    ],
    ['a number', () => WorkingSet.fromTraces(3 as never), 'expects an array of traces, got 3'],
    [
      'paths of traces',
      () => WorkingSet.fromTraces(['vm.trace'] as never),
      'expects traces, got "vm.trace"; read a trace file with Trace.read()',
    ],
    [
      'working sets',
      () => WorkingSet.fromTraces([WorkingSet.fromTraces([trace([1])])] as never),
      'expects traces, got WorkingSet; pass its order',
    ],
    ['a set by new', () => Reflect.construct(WorkingSet, []), 'by WorkingSet.fromTraces() or'],
    [
      'two memory sizes',
      () => WorkingSet.fromTraces([trace([1]), other]),
      'got memoryBytes 1048576 and 2097152',
    ],
    ['minRuns 0', () => WorkingSet.fromTraces([trace([1])], { minRuns: 0 }), '"minRuns"'],
    [
      'minRuns above the runs',
      () => WorkingSet.fromTraces([trace([1])], { minRuns: 2 }),
      'to be 1, the number of traces, got 2',
    ],
    [
      'an unknown option',
      () => WorkingSet.fromTraces([trace([1])], { minruns: 1 } as never),
      'did you mean "minRuns"?',
    ],
  ])('is a TypeError: %s', (_, use, sentence) => {
    expect(use).toThrow(TypeError)
    expect(use).toThrow(sentence)
  })

  test.each<[string, (set: WorkingSet) => Promise<unknown>, string]>([
    [
      'write() without a snapshot',
      (set) => set.write('/nowhere/ws', {} as never),
      '"snapshot" of WorkingSet.write() to be an object with a memoryFile',
    ],
    [
      'write() without a memory file',
      (set) => set.write('/nowhere/ws', { snapshot: {} as never }),
      '"memoryFile" of the snapshot of WorkingSet.write()',
    ],
    ['write() without a path', (set) => set.write('', { snapshot: { memoryFile: 'm' } }), '"path"'],
    [
      'a label that is a number',
      (set) => set.write('p', { snapshot: { memoryFile: 'm' }, label: 7 as never }),
      '"label"',
    ],
    [
      'a snapshot without a name',
      (set) => set.write('p', { snapshot: { memoryFile: 'm', id: '' } }),
      '"id" of the snapshot of WorkingSet.write() to be a string of 1 to 1024 characters',
    ],
    [
      'a snapshot with too long a name',
      (set) => set.write('p', { snapshot: { memoryFile: 'm', id: 's'.repeat(1025) } }),
      '"id"',
    ],
    [
      'a name of a snapshot that is a number',
      (set) => set.write('p', { snapshot: { memoryFile: 'm', id: 7 as never } }),
      '"id"',
    ],
    [
      'a misspelled member of the snapshot',
      (set) => set.write('p', { snapshot: { memoryFile: 'm', diskImage: 'd' } as never }),
      'did you mean "diskImages"?',
    ],
    [
      'a signal that is none',
      (set) => set.write('p', { snapshot: { memoryFile: 'm' }, signal: {} as never }),
      '"signal"',
    ],
    [
      'verify() without a snapshot',
      (set) => set.verify(undefined as never),
      '"snapshot" of WorkingSet.verify()',
    ],
    [
      'verify() without a memory file',
      (set) => set.verify({ memoryFile: undefined as never }),
      '"memoryFile" of the snapshot of WorkingSet.verify()',
    ],
    ['read() without a path', () => WorkingSet.read(undefined as never), '"path"'],
  ])('is a TypeError before anything is opened: %s', async (_, use, sentence) => {
    const error = await use(WorkingSet.fromTraces([trace([1])])).catch((reason: unknown) => reason)
    expect(error).toBeInstanceOf(TypeError)
    expect((error as Error).message).toContain(sentence)
  })
})
