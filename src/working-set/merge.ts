import { checkOptions, print, rules } from '../options.js'
import { PAGE } from '../page.js'
import type { DiskFacts } from './disks.js'
import { MAX_DISKS } from './file/format.js'
import { isWorkingSet } from './internals.js'
import { Trace, type TraceFields } from './trace.js'

/** Options of {@link WorkingSet.fromTraces}. */
export interface MergeOptions {
  /**
   * Minimum number of traces that must contain a page to keep it.
   * @default the number of traces
   */
  readonly minRuns?: number | undefined
  /**
   * Reads of disk images, at most 16: for each image one trace per run, in 4 KiB pages of the
   * image. `memoryBytes` is the image's size, rounded up to a multiple of 4096; times are on the
   * clock of the run's memory trace.
   * @default no disks
   */
  readonly disks?: readonly (readonly (Trace | TraceFields)[])[] | undefined
}

/** Runs of one snapshot, merged. */
export interface MergedRuns {
  readonly order: Trace
  readonly runs: number
  readonly disks: readonly DiskFacts[]
  readonly diskTouches: Uint32Array
}

/** Rule of `minRuns`. */
const countOfTraces = (max: number) => ({
  expected: `${max === 1 ? '' : 'an integer from 1 to '}${max}, the number of traces`,
  accepts: (value: unknown) =>
    rules.count.accepts(value) && (value as number) >= 1 && (value as number) <= max,
})

const diskTraces = {
  expected: `an array of up to ${MAX_DISKS} arrays of traces`,
  accepts: (value: unknown) =>
    Array.isArray(value) && value.length <= MAX_DISKS && value.every(Array.isArray),
}

/**
 * Merges the runs of {@link WorkingSet.fromTraces}.
 *
 * @throws TypeError as documented there.
 */
export function mergeRuns(
  traces: Iterable<Trace | TraceFields>,
  options: MergeOptions,
): MergedRuns {
  const [first, ...rest] = tracesOf(traces)
  if (!first) throw new TypeError('WorkingSet.fromTraces() expects at least one trace, got none')
  const all = [first, ...rest] as const
  for (const trace of all) {
    for (const field of ['memoryBytes', 'pageSize'] as const) {
      if (trace[field] === first[field]) continue
      throw new TypeError(
        `Expected traces of one snapshot, got ${field} ${first[field]} and ${trace[field]}`,
      )
    }
  }
  checkOptions('WorkingSet.fromTraces()', options, {
    minRuns: countOfTraces(all.length),
    disks: diskTraces,
  })
  const minRuns = options.minRuns ?? all.length
  const disks = checkDiskRuns((options.disks ?? []).map(tracesOf), all.length)
  return { order: mergeTraces(all, minRuns), runs: all.length, ...mergeDisks(disks, minRuns) }
}

/** Restores the class of traces that were posted by a worker. */
function tracesOf(traces: Iterable<Trace | TraceFields>): Trace[] {
  if (typeof traces === 'string' || typeof traces?.[Symbol.iterator] !== 'function') {
    throw new TypeError(`WorkingSet.fromTraces() expects an array of traces, got ${print(traces)}`)
  }
  return Array.from(traces, (trace) => {
    if (trace instanceof Trace) return trace
    const remedy = isWorkingSet(trace)
      ? '; pass its order'
      : typeof trace === 'string'
        ? '; read a trace file with Trace.read()'
        : ''
    if (remedy || typeof trace !== 'object' || trace === null) {
      throw new TypeError(`WorkingSet.fromTraces() expects traces, got ${print(trace)}${remedy}`)
    }
    return new Trace({ ...trace })
  })
}

/** Traces of one disk image, one per run. */
type DiskRuns = readonly [Trace, ...Trace[]]

/**
 * Checks that each disk has one trace per run, all of the same image.
 *
 * @throws TypeError if not.
 */
export function checkDiskRuns(disks: readonly (readonly Trace[])[], runs: number): DiskRuns[] {
  return disks.map((traces, i) => {
    if (traces.length !== runs) {
      throw new TypeError(
        `Expected a trace of disk ${i} for each of ${runs} runs, got ${traces.length}`,
      )
    }
    const [first, ...rest] = traces as DiskRuns
    for (const trace of [first, ...rest]) {
      if (trace.pageSize !== PAGE) {
        throw new TypeError(
          `Expected traces of disk ${i} to have pages of ${PAGE} bytes, got ${trace.pageSize}`,
        )
      }
      if (trace.memoryBytes !== first.memoryBytes) {
        throw new TypeError(
          `Expected traces of one image as disk ${i}, ` +
            `got memoryBytes ${first.memoryBytes} and ${trace.memoryBytes}`,
        )
      }
    }
    return [first, ...rest]
  })
}

/**
 * Merges the traces of each disk; returns the touches of all disks in the layout of the file
 * format.
 */
export function mergeDisks(
  disks: readonly DiskRuns[],
  minRuns: number,
): { readonly disks: readonly DiskFacts[]; readonly diskTouches: Uint32Array } {
  const merged = disks.map((traces) => mergeTraces(traces, minRuns))
  const facts = merged.map(({ memoryBytes, pages }) => ({
    name: undefined,
    bytes: memoryBytes,
    pages: pages.length,
  }))
  const touches = merged.flatMap(({ pages, timesUs }) =>
    // By time, since the ranks of mergeTraces() do not compare across disks.
    [...pages.keys()]
      .sort((a, b) => timesUs[a]! - timesUs[b]! || pages[a]! - pages[b]!)
      .flatMap((i) => [pages[i]!, timesUs[i]!]),
  )
  return { disks: facts, diskTouches: Uint32Array.from(touches) }
}

/**
 * Merges traces into one with the pages that occur in at least `minRuns` of them.
 *
 * Pages are sorted by the median of their ranks in the runs, each rank relative to the number of
 * that run's kept pages. Ranks rather than times, since times depend on the speed of the host. Only
 * kept pages count, so that extra pages of one run do not shift the others. Ties are broken by
 * median time, then by address. A page's time is the lower median of its times, a measured value;
 * times need not increase with the order.
 */
export function mergeTraces(traces: readonly [Trace, ...Trace[]], minRuns: number): Trace {
  const runsWith = new Map<number, number>()
  for (const { pages } of traces) {
    for (const page of pages) runsWith.set(page, (runsWith.get(page) ?? 0) + 1)
  }
  const kept = Uint32Array.from(
    [...runsWith].filter(([, runs]) => runs >= minRuns),
    ([page]) => page,
  )
  const slotOf = new Map(Array.from(kept, (page, slot) => [page, slot]))

  const places: number[][] = Array.from(kept, () => [])
  const times: number[][] = Array.from(kept, () => [])
  for (const { pages, timesUs } of traces) {
    const slots: number[] = []
    pages.forEach((page, i) => {
      const slot = slotOf.get(page)
      if (slot === undefined) return
      slots.push(slot)
      times[slot]!.push(timesUs[i]!)
    })
    slots.forEach((slot, place) => {
      places[slot]!.push(place / slots.length)
    })
  }

  const place = Float64Array.from(places, median)
  const time = Uint32Array.from(times, lowerMedian)
  const order = kept
    .map((_, slot) => slot)
    .sort((a, b) => place[a]! - place[b]! || time[a]! - time[b]! || kept[a]! - kept[b]!)
  return new Trace({
    pageSize: traces[0].pageSize,
    memoryBytes: traces[0].memoryBytes,
    pages: order.map((slot) => kept[slot]!),
    timesUs: order.map((slot) => time[slot]!),
    writtenShare: mean(traces.flatMap(({ writtenShare }) => writtenShare ?? [])),
  })
}

const mean = (values: readonly number[]): number | undefined =>
  values.length > 0 ? values.reduce((sum, value) => sum + value, 0) / values.length : undefined

function lowerMedian(values: number[]): number {
  values.sort((a, b) => a - b)
  return values[(values.length - 1) >> 1]!
}

export function median(values: number[]): number {
  const low = lowerMedian(values)
  return (low + values[values.length >> 1]!) / 2
}
