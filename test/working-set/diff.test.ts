import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ReapTraceError } from '../../src/errors.js'
import { diffWorkingSets } from '../../src/working-set/diff.js'
import { Trace, type TraceFields, WorkingSet } from '../../src/working-set/working-set.js'
import { makeMemory, setOf, write } from '../support/working-sets.js'

const set = (pages: readonly number[], fields: Partial<TraceFields> = {}) =>
  WorkingSet.fromTraces([
    new Trace({
      pageSize: 4096,
      memoryBytes: 64 * 2 ** 20,
      pages: Uint32Array.from(pages),
      timesUs: Uint32Array.from(pages, (_, i) => 1000 * i),
      ...fields,
    }),
  ])

const failure = (work: () => unknown): unknown => {
  try {
    return work()
  } catch (error) {
    return error
  }
}

describe('the difference of two working sets', () => {
  test('counts the pages of one alone, of the other alone, and of both', () => {
    const found = diffWorkingSets(set([9, 4, 5, 7]), set([5, 9, 30]))
    expect(found).toEqual({
      pageSize: 4096,
      memoryBytes: 64 * 2 ** 20,
      all: { onlyInACount: 2, onlyInBCount: 1, inBothCount: 2, jaccard: 2 / 5 },
      firstHalf: { onlyInACount: 1, onlyInBCount: 1, inBothCount: 1, jaccard: 1 / 3 },
      firstMs: undefined,
      zeroPages: undefined,
      rankCorrelation: -1,
      onlyInA: Uint32Array.of(4, 7),
      onlyInB: Uint32Array.of(30),
      inBoth: Uint32Array.of(9, 5),
    })
  })

  test('counts the pages touched by a given time, inclusive', () => {
    const { firstMs } = diffWorkingSets(set([1, 2, 3, 4]), set([2, 8, 1]), { firstMs: 1 })
    expect(firstMs).toEqual({ onlyInACount: 1, onlyInBCount: 1, inBothCount: 1, jaccard: 1 / 3 })
  })

  test('counts in pages of 4 KiB whatever the page size, and lists guest pages', () => {
    const huge = (pages: number[]) => set(pages, { pageSize: 2 ** 21 })
    const { all, onlyInB } = diffWorkingSets(huge([1, 2]), huge([2, 3]))
    expect(all).toEqual({
      onlyInACount: 512,
      onlyInBCount: 512,
      inBothCount: 512,
      jaccard: 1 / 3,
    })
    expect([...onlyInB]).toEqual([3])
  })

  test('compares the zero pages of files', async () => {
    const memoryFile = makeMemory(64, (page) => page % 2 === 1)
    const [a, b] = await Promise.all(
      [
        [1, 3, 4, 5],
        [5, 7, 8],
      ].map(async (pages) => WorkingSet.read(await write(memoryFile, pages))),
    )
    const zeroPages = { onlyInACount: 2, onlyInBCount: 1, inBothCount: 1, jaccard: 1 / 4 }
    expect(diffWorkingSets(a!, b!)).toMatchObject({ zeroPages })
    expect(diffWorkingSets(a!, setOf(memoryFile, [1])).zeroPages).toBeUndefined()
  })

  test('is none between two sets of the same pages in the same order, and of two empty ones', () => {
    const order = [5, 3, 8, 1]
    const same = diffWorkingSets(set(order), set(order))
    expect(same).toMatchObject({
      all: { onlyInACount: 0, onlyInBCount: 0, inBothCount: 4, jaccard: 1 },
      rankCorrelation: 1,
    })
    expect(diffWorkingSets(set([]), set([]))).toMatchObject({
      all: { inBothCount: 0, jaccard: 1 },
      rankCorrelation: undefined,
    })
  })

  test('divides all pages, whatever the sets', () => {
    const pages = fc.uniqueArray(fc.nat(100), { maxLength: 60 })
    fc.assert(
      fc.property(pages, pages, (a, b) => {
        const { all, onlyInA, onlyInB, inBoth, rankCorrelation } = diffWorkingSets(set(a), set(b))
        expect([...onlyInA]).toEqual(a.filter((page) => !b.includes(page)))
        expect([...onlyInB]).toEqual(b.filter((page) => !a.includes(page)))
        expect([...inBoth]).toEqual(a.filter((page) => b.includes(page)))
        expect(all).toMatchObject({
          onlyInACount: onlyInA.length,
          onlyInBCount: onlyInB.length,
          inBothCount: inBoth.length,
        })
        if (inBoth.length < 2) expect(rankCorrelation).toBeUndefined()
        else expect(Math.abs(rankCorrelation!)).toBeLessThanOrEqual(1)
      }),
    )
  })

  test('is refused for sets that cannot be of one snapshot', () => {
    for (const [fields, check, sentence] of [
      [{ memoryBytes: 2 ** 20 }, 'size', /67108864 and 1048576 bytes of memory/],
      [{ pageSize: 2 ** 21 }, 'page-size', /pages of 4096 and of 2097152 bytes/],
    ] as const) {
      const error = failure(() => diffWorkingSets(set([1]), set([1], fields)))
      expect(error).toBeInstanceOf(ReapTraceError)
      const code = 'ERR_SNAPSHOT_MISMATCH'
      expect(error).toMatchObject({ code, check, message: expect.stringMatching(sentence) })
    }
  })

  test('is refused for anything but sets, and for unknown options', () => {
    const one = set([1])
    expect(() => diffWorkingSets(one, one.order as never)).toThrow(
      'Expected the argument "b" of diffWorkingSets() to be a WorkingSet, got Trace',
    )
    expect(() => diffWorkingSets(one, one, { firstMs: -1 })).toThrow(TypeError)
    expect(() => diffWorkingSets(one, one, { first: 1 } as never)).toThrow('no option "first"')
  })
})
