import { type NativeSession, native } from '../binding/addon.js'
import { PAGE } from '../page.js'
import type { FaultStats, PrefetchWork } from './fault-handler.js'
import type {
  FaultClass,
  FaultSpan,
  FaultWaits,
  FetchSpan,
  InstallSpan,
  RemovalMark,
  SessionTimes,
  Timeline,
} from './timing.js'

/** Counters that the engine keeps in guest pages. */
const PAGE_COUNTERS = [
  'installed',
  'zero',
  'prefetched',
  'installedAhead',
  'present',
  'deferred',
  'discarded',
  'removed',
] as const

/** Classes and kinds in the order of the engine's enums. */
export const FAULT_CLASSES = ['on-demand', 'late', 'residual'] as const
export const SPAN_KINDS = ['fetch', 'install', 'fault', 'remove'] as const

export function statsOf(session: NativeSession, pageSize: number): FaultStats {
  const counters = native().counters(session)
  for (const name of PAGE_COUNTERS) counters[name] = (counters[name] ?? 0) * (pageSize / PAGE)
  const [stalledMs, slow, classes] = native().waits(session)
  const slowest = rows(slow, 3).map(([offset = 0, waitUs = 0, index = 0]) => ({
    offset,
    waitUs,
    class: FAULT_CLASSES[index] ?? 'on-demand',
  }))
  return {
    ...(counters as Record<CounterName, number>),
    prefetch: prefetchWorkOf(session),
    stalledMs,
    waits: {
      'on-demand': waitsOf(classes['on-demand']),
      late: waitsOf(classes.late),
      residual: waitsOf(classes.residual),
    },
    slowest,
  }
}

export function prefetchWorkOf(session: NativeSession): PrefetchWork {
  const [fetchMs = 0, diskMs = 0, diskBytes = 0, installMs = 0, installCpuMs = 0] =
    native().prefetchWork(session)
  return { fetchMs, diskMs, diskBytes, installMs, installCpuMs }
}

type CounterName = Exclude<keyof FaultStats, 'prefetch' | 'stalledMs' | 'waits' | 'slowest'>

function waitsOf([count = 0, totalUs = 0, maxUs = 0, ...buckets]: Float64Array): FaultWaits {
  return {
    count,
    totalUs,
    maxUs,
    buckets: rows(buckets, 2).map(([belowUs = 0, faults = 0]) => [belowUs, faults] as const),
  }
}

export const timesOf = (session: NativeSession): SessionTimes => ({
  listening: 0,
  ...native().steps(session),
})

export function timelineOf(session: NativeSession): Timeline {
  const [spans, missing] = native().timeline(session)
  const fetches: FetchSpan[] = []
  const installs: InstallSpan[] = []
  const faults: FaultSpan[] = []
  const removals: RemovalMark[] = []
  for (const row of rows(spans, 8)) {
    const [kind = 0, from = 0, to = 0, offset = 0, bytes = 0, index = 0, waited, thread = 0] = row
    const span = { from, to }
    switch (SPAN_KINDS[kind]) {
      case 'fetch':
        fetches.push({ ...span, bytes, waited: waited === 1, thread })
        break
      case 'install':
        installs.push({ ...span, bytes, thread })
        break
      case 'fault':
        faults.push({ ...span, class: FAULT_CLASSES[index] as FaultClass, offset })
        break
      case 'remove':
        removals.push({ at: from, offset, bytes })
        break
    }
  }
  return { fetches, installs, faults, removals, missing }
}

function rows(numbers: ArrayLike<number>, width: number): number[][] {
  return Array.from({ length: numbers.length / width }, (_, row) =>
    Array.from({ length: width }, (_, column) => numbers[row * width + column] as number),
  )
}
