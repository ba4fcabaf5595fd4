import { native } from '../binding/addon.js'
import { checkOptions, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import { internalsOf } from './internals.js'
import { checkSameSnapshot } from './same-snapshot.js'
import { WorkingSet } from './working-set.js'

/** Pages of two sets, by membership. Counts are in 4 KiB pages. */
export interface Overlap {
  /** Number of pages in A and not in B. */
  readonly onlyInACount: number
  readonly onlyInBCount: number
  readonly inBothCount: number
  /** Share of all of these that is in both, from 0 to 1; 1 if both sets are empty. */
  readonly jaccard: number
}

/** Options of {@link diffWorkingSets}. */
export interface DiffOptions {
  /**
   * Time in milliseconds: also compares the pages that each set has by then.
   * @default no such comparison
   */
  readonly firstMs?: number | undefined
}

/** Result of {@link diffWorkingSets}. */
export interface WorkingSetDiff {
  readonly pageSize: number
  readonly memoryBytes: number
  readonly all: Overlap
  /** The first half of each set, by first-touch order. */
  readonly firstHalf: Overlap
  /** The pages of each set whose first-touch time is at most `firstMs`; `undefined` without it. */
  readonly firstMs: Overlap | undefined
  /** The zero pages of each set; `undefined` if one of them has no file, and so no bytes. */
  readonly zeroPages: Overlap | undefined
  /**
   * Spearman's correlation of the first-touch order of the pages in both, from -1 (reversed) to 1
   * (the same order); `undefined` for fewer than two pages.
   */
  readonly rankCorrelation: number | undefined
  /** Pages in A and not in B, in A's first-touch order and in units of `pageSize`. */
  readonly onlyInA: Uint32Array
  /** Pages in B and not in A, in B's order. */
  readonly onlyInB: Uint32Array
  /** Pages in both, in A's order. */
  readonly inBoth: Uint32Array
}

const setRule = required({
  expected: 'a WorkingSet',
  accepts: (value) => value instanceof WorkingSet,
})

/**
 * Compares the pages of two working sets and their order, not their bytes.
 *
 * @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH`: the sets differ in `memoryBytes` or `pageSize`
 * (`check` is `size` or `page-size`), so they are not of one snapshot.
 */
export function diffWorkingSets(
  a: WorkingSet,
  b: WorkingSet,
  options: DiffOptions = {},
): WorkingSetDiff {
  checkOptions('diffWorkingSets()', { a, b }, { a: setRule, b: setRule }, 'argument')
  checkOptions('diffWorkingSets()', options, { firstMs: rules.milliseconds })
  checkSameSnapshot([a, b])
  const { pageSize, memoryBytes } = a
  const [pagesOfA, pagesOfB] = [a.order.pages, b.order.pages]
  const rankInB = new Map<number, number>()
  for (const [rank, page] of pagesOfB.entries()) rankInB.set(page, rank)
  const inBoth = pagesOfA.filter((page) => rankInB.has(page))
  const common = new Set(inBoth)
  const step = pageSize / PAGE
  const { firstMs } = options
  return {
    pageSize,
    memoryBytes,
    all: overlapOf(pagesOfA, pagesOfB, step),
    firstHalf: overlapOf(firstHalf(pagesOfA), firstHalf(pagesOfB), step),
    firstMs:
      firstMs === undefined
        ? undefined
        : overlapOf(touchedBy(a, firstMs), touchedBy(b, firstMs), step),
    zeroPages: hasFile(a) && hasFile(b) ? overlapOf(zeroPagesOf(a), zeroPagesOf(b), 1) : undefined,
    rankCorrelation: spearman(Array.from(inBoth, (page) => rankInB.get(page)!)),
    onlyInA: pagesOfA.filter((page) => !common.has(page)),
    onlyInB: pagesOfB.filter((page) => !common.has(page)),
    inBoth,
  }
}

function overlapOf(a: Uint32Array, b: Uint32Array, step: number): Overlap {
  const inA = new Set(a)
  const both = b.reduce((count, page) => count + (inA.has(page) ? 1 : 0), 0)
  const either = a.length + b.length - both
  return {
    onlyInACount: (a.length - both) * step,
    onlyInBCount: (b.length - both) * step,
    inBothCount: both * step,
    jaccard: either === 0 ? 1 : both / either,
  }
}

const firstHalf = (pages: Uint32Array): Uint32Array =>
  pages.subarray(0, Math.ceil(pages.length / 2))

const touchedBy = ({ order: { pages, timesUs } }: WorkingSet, ms: number): Uint32Array =>
  pages.filter((_, i) => timesUs[i]! <= ms * 1000)

const hasFile = (set: WorkingSet): boolean => internalsOf(set).file !== undefined

/** The zero pages, in 4 KiB pages. */
function zeroPagesOf(set: WorkingSet): Uint32Array {
  const extents = native().zeroExtentsOf(internalsOf(set).handle)
  const pages: number[] = []
  for (let i = 0; i < extents.length; i += 2) {
    for (let page = 0; page < extents[i + 1]!; page++) pages.push(extents[i]! + page)
  }
  return Uint32Array.from(pages)
}

/** Spearman's correlation of a list of distinct numbers with its indices. */
function spearman(values: readonly number[]): number | undefined {
  const count = values.length
  if (count < 2) return undefined
  const places = [...values.keys()].sort((a, b) => values[a]! - values[b]!)
  const squares = places.reduce((sum, at, place) => sum + (at - place) ** 2, 0)
  return 1 - (6 * squares) / (count * (count ** 2 - 1))
}
