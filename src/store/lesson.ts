import type { ReapTraceError } from '../errors.js'
import { monotonicMs } from '../events.js'
import { PAGE } from '../page.js'
import type { Warmth } from '../restore/backend.js'
import type { RestorePlan } from '../restore/plan.js'
import type { PageCacheRestore, UffdRestore } from '../restore/restore.js'
import type { FaultStats } from '../uffd/fault-handler.js'
import type { Trace, WorkingSet } from '../working-set/working-set.js'
import type { HistoryLine } from './history.js'
import type { Drift, Observation } from './learner/learner.js'
import type { StoredSet } from './manifest.js'
import type { StoreSnapshot } from './snapshot-key.js'

/** What one restore taught. */
export interface Lesson {
  readonly snapshot: StoreSnapshot
  readonly memoryBytes: number
  /** The memory file that was restored, by `contentKey()`. */
  readonly memory: string
  readonly pageSize: number
  /** `undefined` for a restore from the page cache, whose touches nobody sees. */
  readonly observation: Observation | undefined
  readonly line: HistoryLine
  /** The set that it would have used, if that was missing, damaged or stale. */
  readonly badSet: StoredSet | undefined
}

/** A set that was written. */
export interface WrittenSet {
  /** `undefined` for the common set. */
  readonly variant: string | undefined
  /** Number of 4 KiB pages. */
  readonly pageCount: number
  /** Number of pages of the set that it replaced; `undefined` for the first one. */
  readonly previousPageCount: number | undefined
}

/** Result of learning from a restore. */
export interface Learned {
  /** Sets that were written with this restore's evidence, in this order. */
  readonly written: readonly WrittenSet[]
  /** Drift that became visible with it, or with others of its batch. */
  readonly drifts: readonly Drift[]
  /** The failure to write a set; the evidence is kept. */
  readonly failure?: ReapTraceError | undefined
}

/** A restore, as far as it is known before its end. */
export interface Attempt {
  readonly snapshot: StoreSnapshot
  readonly memoryBytes: number
  /** The memory file, by `contentKey()`. */
  readonly memory: string
  readonly variant: string | undefined
  readonly plan: RestorePlan
  /** The set that was prefetched. */
  readonly set: WorkingSet | undefined
  readonly heldOut: Uint32Array
  readonly isTrial: boolean
  /** Whether only its mark makes it a lesson. */
  readonly waitsForReady: boolean
  readonly warmth: Warmth | undefined
  /** The set, if it turned out to be missing, damaged or stale. */
  readonly badSet: () => StoredSet | undefined
}

/** Lesson of a restore by a fault handler. */
function lessonOfHandler(
  attempt: Attempt,
  trace: Trace,
  stats: FaultStats,
  responseMs: number | undefined,
  sinceFirstFaultMs: number,
): Lesson {
  const { variant, set, heldOut } = attempt
  const { stalledMs, waits, prefetch, prefetched } = stats
  const unit = trace.pageSize / PAGE
  const isHeldOut = new Set(heldOut)
  const heldOutFaults = trace.pages.reduce((sum, page) => sum + (isHeldOut.has(page) ? 1 : 0), 0)
  // A mark may be past. Its distance to the first fault is known to a microsecond: both have one clock.
  const limitUs = (trace.timesUs[0] ?? 0) + 1000 * sinceFirstFaultMs + 1
  const count = trace.timesUs.findLastIndex((timeUs) => timeUs <= limitUs) + 1
  const onDemand = { count: 0, totalUs: 0 }
  for (const { count, totalUs } of [waits['on-demand'], waits.residual]) {
    onDemand.count += count
    onDemand.totalUs += totalUs
  }
  const observation: Observation = {
    variant,
    pages: trace.pages.subarray(0, count),
    timesUs: trace.timesUs.subarray(0, count),
    prefetched: set && without(set.order.pages, isHeldOut),
    heldOut,
    faultUs: onDemand.count > 0 ? onDemand.totalUs / onDemand.count : undefined,
    // Not their duration, which other work on the cores lengthens.
    installUs:
      prefetched > 0 && prefetch.installCpuMs > 0
        ? (1000 * prefetch.installCpuMs * unit) / prefetched
        : undefined,
    responseMs,
    stalledMs,
  }
  return {
    ...lessonOf(attempt, trace.pageSize),
    observation,
    line: {
      ...lineOf(attempt, responseMs),
      prefetchedPageCount: prefetched,
      diskBytes: prefetch.diskBytes,
      faults: stats.faults,
      lateFaults: stats.lateFaults,
      residualFaults: Math.max(0, stats.residualFaults - heldOutFaults),
      heldOutPageCount: heldOut.length * unit,
      heldOutFaults,
      stalledMs,
    },
  }
}

/** Lesson of a restore from the page cache: only its response. */
const lessonOfPageCache = (attempt: Attempt, responseMs: number): Lesson => ({
  ...lessonOf(attempt, attempt.set?.pageSize ?? PAGE),
  observation: undefined,
  line: lineOf(attempt, responseMs),
})

const lessonOf = ({ snapshot, memoryBytes, memory, badSet }: Attempt, pageSize: number) => ({
  snapshot,
  memoryBytes,
  memory,
  pageSize,
  badSet: badSet(),
})

function lineOf(
  { variant, plan: { backend }, set, isTrial, warmth }: Attempt,
  responseMs: number | undefined,
) {
  return {
    at: new Date().toISOString(),
    ...(variant !== undefined && { variant }),
    backend,
    recorded: set === undefined,
    ...(isTrial && { trial: true as const }),
    ...(warmth && { warmth }),
    ...(responseMs !== undefined && { responseMs: Math.round(responseMs * 1000) / 1000 }),
  }
}

function without(pages: Uint32Array, left: ReadonlySet<number>): Uint32Array {
  return left.size === 0 ? pages : pages.filter((page) => !left.has(page))
}

/** What the store adds to a restore, except its key. `learn` never rejects. */
export function observe(
  restored: UffdRestore | PageCacheRestore,
  attempt: Attempt,
  learn: (lesson: Lesson) => Promise<Learned | undefined>,
) {
  const startedMs = monotonicMs()
  let settle: (learned: Promise<Learned | undefined> | undefined) => void = () => {}
  const learned = new Promise<Learned | undefined>((resolve) => {
    settle = resolve
  })
  let isOver = false
  const end = (lesson: () => Lesson | undefined) => {
    if (isOver) return
    isOver = true
    const found = lesson()
    settle(found && learn(found))
  }
  const nothing = () => undefined
  const close: UffdRestore['close'] = async (options) => {
    await restored.close(options)
    end(nothing)
  }
  const common = { learned, close, [Symbol.asyncDispose]: close }
  if (restored.backend === 'page-cache') {
    const ready = async (atMs = monotonicMs()): Promise<void> => {
      const nowMs = monotonicMs()
      if (!(atMs >= startedMs && atMs <= nowMs)) {
        throw new TypeError(
          `ready() expects milliseconds of CLOCK_MONOTONIC between the restore (${startedMs}) and now (${nowMs}), got ${atMs}`,
        )
      }
      end(() => lessonOfPageCache(attempt, atMs - startedMs))
    }
    return { ...common, ready }
  }
  const { handler } = restored
  const lesson = (atMs?: number): Lesson | undefined => {
    // The handler has no mark after its end.
    const { connected, firstFault = 0, ready: markMs = atMs } = handler.times()
    // Without a VM, there is nothing to learn.
    if (connected === undefined) return undefined
    // The handler listened before restore() returned.
    const responseMs = markMs && Math.max(0, markMs - startedMs)
    const sinceFirstFaultMs = (markMs ?? Number.POSITIVE_INFINITY) - firstFault
    const [trace, stats] = [handler.stopRecording(), handler.stats()]
    return lessonOfHandler(attempt, trace, stats, responseMs, sinceFirstFaultMs)
  }
  // What a VM touched whose session failed is not a working set.
  handler.closed.then(
    () => attempt.waitsForReady || end(() => lesson()),
    () => end(nothing),
  )
  const ready = async (atMs = monotonicMs()): Promise<void> => {
    handler.ready(atMs)
    end(() => lesson(atMs))
  }
  return { ...common, ready }
}
