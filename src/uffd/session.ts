import { isMainThread } from 'node:worker_threads'
import { onExit } from 'signal-exit'
import { onAbort } from '../abort.js'
import { type NativeEvent, type NativeSession, native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import type { FailureContext } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { monotonicMs, report, warning } from '../events.js'
import { checkOptions, oneOf } from '../options.js'
import { PAGE } from '../page.js'
import type { OpenSnapshot } from '../working-set/open.js'
import { separate, Trace } from '../working-set/trace.js'
import type {
  FaultHandler,
  FaultStats,
  GuestInfo,
  PrefetchResult,
  ServeEvent,
  ServeOptions,
  ServeResult,
  WorkingSetComparison,
} from './fault-handler.js'
import { prefetchWorkOf, statsOf, timelineOf, timesOf } from './measurements.js'
import type { RestoreSpans } from './spans.js'
import { compareAfterRestore, stalePolicyOf } from './stale-working-set.js'
import { publish } from './telemetry.js'
import type { SessionTimes, Timeline } from './timing.js'
import { writtenShareOf } from './written-share.js'

/** Sessions of this thread that have not ended. */
const sessions = new Map<number, Session>()
let started = false
let forgetExit: (() => void) | undefined

/**
 * Node ignores SIGXFSZ, so that a write past RLIMIT_FSIZE fails with EFBIG. signal-exit, if it has
 * the only listener, ends the process; and libuv makes the signal fatal when the last one goes. So
 * this listener stays.
 */
const ignore = (): void => {}

export function startEngine(): void {
  if (started) return
  const failure = native().start(deliver)
  if (failure) throw toError(failure, {})
  started = true
}

function deliver(event: NativeEvent): void {
  sessions.get(event.session)?.deliver(event)
}

/**
 * Shuts the engine down when the process exits. Otherwise a signal's default action would leave
 * behind the socket of a listening session, and a VM that waits forever.
 */
export function watchExit(): void {
  if (!isMainThread || forgetExit) return
  if (!process.listeners('SIGXFSZ').includes(ignore)) process.on('SIGXFSZ', ignore)
  forgetExit = onExit(() => {
    started = false
    native().shutdown()
  })
}

export class Session implements FaultHandler {
  readonly socketPath: string
  readonly connected: Promise<GuestInfo>
  readonly prefetched: Promise<PrefetchResult>
  readonly compared: Promise<WorkingSetComparison | undefined>
  readonly closed: Promise<ServeResult>

  readonly #session: NativeSession
  readonly #options: ServeOptions
  readonly #snapshot: OpenSnapshot
  readonly #context: FailureContext
  readonly #spans: RestoreSpans | undefined
  /** Ignores `signal` from now on. */
  readonly #forgetSignal: () => void
  /** Ignores `startSignal` from now on. */
  readonly #endStart: () => void
  readonly #isSetRefused: boolean
  #guest: GuestInfo | undefined
  /** Cleared at the end of the prefetch. */
  #isUnproven: boolean
  #result: ServeResult | undefined
  #statsAtReady: FaultStats | undefined
  #abortReason: { readonly reason: unknown } | undefined
  #detaching: { readonly end: Promise<ServeResult>; fail(error: unknown): void } | undefined
  readonly #settle: {
    connected: Settle<GuestInfo>
    prefetched: Settle<PrefetchResult>
    compared: Settle<WorkingSetComparison | undefined>
    closed: Settle<ServeResult>
  }

  constructor(
    [id, session]: readonly [id: number, session: NativeSession],
    options: ServeOptions,
    snapshot: OpenSnapshot,
    isSetRefused: boolean,
    context: FailureContext,
    spans: RestoreSpans | undefined,
  ) {
    const connected = defer<GuestInfo>()
    const prefetched = defer<PrefetchResult>()
    const compared = defer<WorkingSetComparison | undefined>()
    const closed = defer<ServeResult>()
    this.socketPath = options.socketPath
    this.connected = connected.promise
    this.prefetched = prefetched.promise
    this.compared = compared.promise
    this.closed = closed.promise
    this.#settle = { connected, prefetched, compared, closed }
    this.#session = session
    this.#options = options
    this.#snapshot = snapshot
    this.#isUnproven = snapshot.set !== undefined && snapshot.provenBy === undefined
    this.#isSetRefused = isSetRefused
    this.#context = context
    this.#spans = spans
    sessions.set(id, this)
    closed.promise.catch(() => {}).finally(() => sessions.delete(id))
    this.#forgetSignal = onAbort(options.signal, (reason) => this.#abort(reason))
    this.#endStart = onAbort(options.startSignal, (reason) => this.#abort(reason))
  }

  announce(): void {
    const { socketPath } = this
    this.#emit({ type: 'listening', socketPath, atMs: this.times().listening })
  }

  stats(): FaultStats {
    return statsOf(this.#session, this.#guest?.pageSize ?? PAGE)
  }

  times(): SessionTimes {
    return timesOf(this.#session)
  }

  ready(atMs = monotonicMs()): void {
    const { listening } = this.times()
    const nowMs = monotonicMs()
    if (!(atMs >= listening && atMs <= nowMs)) {
      throw new TypeError(
        `ready() expects milliseconds of CLOCK_MONOTONIC between listening (${listening}) and now (${nowMs}), got ${atMs}`,
      )
    }
    if (this.#result || this.#statsAtReady) return
    if (!native().markReady(this.#session, atMs)) return
    this.#statsAtReady = this.stats()
    this.#emit({ type: 'ready', atMs: this.times().ready ?? atMs })
  }

  timeline(): Timeline {
    if (!this.#options.timeline) {
      throw new TypeError(
        'timeline() needs a session that keeps one: pass timeline: true to serve()',
      )
    }
    return timelineOf(this.#session)
  }

  stopRecording(): Trace {
    if (!this.#options.record) {
      throw new TypeError(
        'stopRecording() needs a session that records: pass record: true to serve()',
      )
    }
    const [pageSize, memoryBytes, touches] = native().takeTrace(this.#session)
    if (pageSize === 0) {
      throw new ReapTraceError('ERR_CLOSED', 'stopRecording() was called before a VM connected', {
        hint: 'Wait for `connected` first.',
      })
    }
    const { pages, timesUs } = separate(touches)
    const writtenShare = this.#result
      ? undefined
      : writtenShareOf(
          this.#guest,
          (offset, into) => native().readCached(this.#session, offset, into),
          pages,
        )
    return new Trace({ pageSize, memoryBytes, pages, timesUs, writtenShare })
  }

  detach(): Promise<ServeResult> {
    if (this.#result || !native().detach(this.#session)) {
      return Promise.reject(
        new ReapTraceError('ERR_CLOSED', 'detach() needs a session that serves a VM', {
          hint: 'Wait for `connected` first; after `closed` there is nothing to detach.',
        }),
      )
    }
    if (!this.#detaching) {
      const { promise, reject } = defer<never>()
      this.#detaching = { end: Promise.race([this.closed, promise]), fail: reject }
    }
    return this.#detaching.end
  }

  close(options: { readonly vm?: 'kill' | 'leave' | undefined } = {}): Promise<ServeResult> {
    checkOptions('close()', options, { vm: oneOf('kill', 'leave') })
    if (!this.#result) native().close(this.#session, options.vm !== 'leave')
    return this.closed.catch(() => this.#result!)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #abort(reason: unknown): void {
    this.#abortReason ??= { reason }
    native().close(this.#session, this.#options.vm !== 'leave')
  }

  deliver(event: NativeEvent): void {
    switch (event.kind) {
      case 'connected':
        this.#onConnected(event)
        break
      case 'prefetched':
        this.#onPrefetched(event)
        break
      case 'detach-failed':
        if (event.failure) this.#detaching?.fail(toError(event.failure, this.#context))
        this.#detaching = undefined
        break
      case 'read-hangs':
        if (event.failure) {
          this.#emit(warning(toError(event.failure, this.#context), event.atMs))
        }
        break
      case 'ended':
        // A mark that was written before comes first, such as a line of a FIFO, which the next turn
        // of the event loop reads. The first immediate ends this turn, the second one follows it.
        setImmediate(() => setImmediate(() => this.#onEnded(event)))
        break
    }
  }

  #onConnected({ pid, pageSize, regions: flat, atMs }: NativeEvent & { kind: 'connected' }): void {
    const regions = Array.from({ length: flat.length / 3 }, (_, i) => ({
      baseAddress: Number(flat[3 * i]),
      size: Number(flat[3 * i + 1]),
      offset: Number(flat[3 * i + 2]),
    }))
    this.#guest = {
      pid,
      pageSize,
      memoryBytes: regions.reduce((sum, { size }) => sum + size, 0),
      regions,
    }
    this.#settle.connected.resolve(this.#guest)
    if (!this.#snapshot.set) {
      this.#endStart()
      this.#settle.prefetched.resolve({ ...nothingPrefetched, complete: !this.#isSetRefused })
    }
    this.#emit({ type: 'connected', ...this.#guest, atMs })
  }

  #onPrefetched(event: NativeEvent & { kind: 'prefetched' }): void {
    const [pages = 0, extentCount = 0, bytes = 0, sinceConnectUs = 0, fromWorkingSet = 0] =
      event.prefetch
    const error = event.failure ? toError(event.failure, this.#context) : undefined
    const result: PrefetchResult = {
      pageCount: (pages * (this.#guest?.pageSize ?? PAGE)) / PAGE,
      extentCount,
      bytes,
      ...prefetchWorkOf(this.#session),
      sinceConnectMs: sinceConnectUs / 1000,
      source: fromWorkingSet ? 'working-set' : 'memory-file',
      provenBy: fromWorkingSet ? this.#snapshot.provenBy : undefined,
      complete: error === undefined,
    }
    this.#endStart()
    if (error && this.#options.onBadWorkingSet === 'fail') this.#settle.prefetched.reject(error)
    else this.#settle.prefetched.resolve(result)
    const { atMs } = event
    if (error) this.#emit(warning(error, atMs))
    this.#emit({ type: 'prefetched', ...result, atMs })
    this.#isUnproven = false
    this.#settle.compared.resolve(
      !fromWorkingSet && !error && this.#guest?.pageSize === PAGE ? this.#compare() : undefined,
    )
  }

  /** Never rejects. */
  async #compare(): Promise<WorkingSetComparison | undefined> {
    const warn = (error: ReapTraceError) => this.#emit(warning(error))
    try {
      const policy = stalePolicyOf(this.#options)
      const result = await compareAfterRestore(this.#snapshot, this.#options, policy, warn)
      if (result) this.#emit({ type: 'compared', ...result, atMs: monotonicMs() })
      return result
    } catch (error) {
      if (error instanceof ReapTraceError) warn(error)
      return undefined
    }
  }

  #onEnded({ state, oom, pid, failure: cause, atMs }: NativeEvent & { kind: 'ended' }): void {
    this.#forgetSignal()
    this.#endStart()
    const times = this.times()
    const result: ServeResult = {
      state,
      ...(oom && { oom }),
      stats: this.stats(),
      ...(this.#statsAtReady && times.ready && { statsAtReady: this.#statsAtReady }),
      times,
    }
    this.#result = result
    if (sessions.size <= 1) {
      forgetExit?.()
      forgetExit = undefined
    }
    const failure = cause ? toError(cause, { ...this.#context, vm: { pid, state } }) : undefined
    const early = this.#abortReason
      ? this.#abortReason.reason
      : (failure ??
        new ReapTraceError('ERR_CLOSED', `the session has ended: ${state}`, {
          path: this.socketPath,
        }))
    this.#settle.connected.reject(early)
    this.#settle.prefetched.reject(early)
    // Without effect after the prefetch. A VM that exits earlier still has its set compared for the
    // next restore.
    const wasServed = this.#guest?.pageSize === PAGE && !this.#abortReason
    this.#settle.compared.resolve(wasServed && this.#isUnproven ? this.#compare() : undefined)
    if (this.#abortReason) this.#settle.closed.reject(this.#abortReason.reason)
    else if (failure) this.#settle.closed.reject(failure)
    else this.#settle.closed.resolve(result)
    this.#emit({ type: 'closed', ...result, ...(failure && { error: failure }), atMs })
  }

  #emit(event: ServeEvent): void {
    report(this.#options, event)
    this.#spans?.onEvent(event, this)
    publish({ handler: this, snapshot: this.#options.snapshot, event })
  }
}

interface Settle<T> {
  readonly promise: Promise<T>
  readonly resolve: (value: T | PromiseLike<T>) => void
  readonly reject: (reason: unknown) => void
}

/** A promise whose rejection may stay unhandled: `closed` or an event reports it as well. */
function defer<T>(): Settle<T> {
  let settle: Omit<Settle<T>, 'promise'> | undefined
  const promise = new Promise<T>((resolve, reject) => {
    settle = { resolve, reject }
  })
  promise.catch(() => {})
  return { promise, ...settle! }
}

const nothingPrefetched: PrefetchResult = {
  pageCount: 0,
  extentCount: 0,
  bytes: 0,
  fetchMs: 0,
  diskMs: 0,
  diskBytes: 0,
  installMs: 0,
  installCpuMs: 0,
  sinceConnectMs: 0,
  source: undefined,
  provenBy: undefined,
  complete: true,
}
