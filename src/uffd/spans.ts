import type { Context, Span } from '@opentelemetry/api'
import { monotonicMs } from '../events.js'
import type { FaultStats, PrefetchResult, ServeEvent } from './fault-handler.js'
import type { SessionTimes } from './timing.js'

type Api = typeof import('@opentelemetry/api')

/** Under this key the API keeps its registered providers, in all of its copies of version 1. */
const REGISTRATION = Symbol.for('opentelemetry.js.api.1')

/**
 * The OpenTelemetry API, if the program has registered a provider with it. It is an optional peer
 * dependency: without a provider it is not loaded.
 */
export async function openTelemetry(): Promise<Api | undefined> {
  if (!(REGISTRATION in globalThis)) return undefined
  // In a `try` the import is optional for webpack too, which ignores a `.catch()`.
  try {
    return await import('@opentelemetry/api')
  } catch {
    return undefined
  }
}

/** Source of a session's times and figures. */
export interface Traced {
  times(): SessionTimes
  stats(): FaultStats
}

/**
 * OpenTelemetry spans of one session, children of the context in which `serve()` was called:
 * `reap-trace.restore` with `listen`, `handshake`, `prefetch` (with `fetch` and `install`) and
 * `ready`. They are made when all their times are known, from the engine's clock, so that a blocked
 * JavaScript thread changes none: at the ready mark and the end of the prefetch, or at the end of
 * the session.
 */
export class RestoreSpans {
  readonly #api: Api
  readonly #parent: Context
  readonly #attributes: Readonly<Record<string, string>>
  readonly #startedMs: number
  readonly #warnings: Extract<ServeEvent, { type: 'warning' }>[] = []
  #prefetch: PrefetchResult | undefined
  #ended = false

  constructor(api: Api, startedMs: number, attributes: Readonly<Record<string, string>>) {
    this.#api = api
    this.#parent = api.context.active()
    this.#attributes = attributes
    this.#startedMs = startedMs
  }

  onEvent(event: ServeEvent, session: Traced): void {
    if (this.#ended) return
    if (event.type === 'warning') this.#warnings.push(event)
    if (event.type === 'prefetched') this.#prefetch = event
    const times = session.times()
    const isComplete = times.ready !== undefined && times.prefetched !== undefined
    if (event.type === 'closed') this.#end(session, event.error)
    else if (isComplete) this.#end(session)
  }

  #end(session: Traced, error?: Error): void {
    this.#ended = true
    const times = session.times()
    const { listening, accepted, connected, firstFetch, firstInstall, prefetched, ready } = times
    const last = Math.max(ready ?? 0, prefetched ?? 0) || (times.closed ?? monotonicMs())
    const end = error ? (times.closed ?? last) : last
    const stats = session.stats()
    const root = this.#span('reap-trace.restore', this.#startedMs, this.#parent, {
      ...this.#attributes,
      'reap_trace.faults': stats.faults,
      'reap_trace.faults.late': stats.lateFaults,
      'reap_trace.faults.residual': stats.residualFaults,
      'reap_trace.stalled_ms': stats.stalledMs,
    })
    for (const { error: warned, atMs } of this.#warnings) {
      root.recordException(warned, this.#wall(atMs))
    }
    if (error) {
      root.recordException(error, this.#wall(end))
      root.setStatus({ code: this.#api.SpanStatusCode.ERROR, message: error.message })
    }
    const within = this.#api.trace.setSpan(this.#parent, root)
    this.#child(
      'listen',
      listening,
      accepted ?? (connected === undefined ? end : undefined),
      within,
    )
    this.#child('handshake', accepted, connected ?? (accepted && end), within)
    if (firstFetch !== undefined) {
      const until = prefetched ?? end
      const prefetch = this.#span('reap-trace.prefetch', firstFetch, within, {
        ...(this.#prefetch && {
          'reap_trace.pages': this.#prefetch.pageCount,
          'reap_trace.bytes': this.#prefetch.bytes,
          'reap_trace.complete': this.#prefetch.complete,
        }),
      })
      const inner = this.#api.trace.setSpan(within, prefetch)
      // The engine sums the time in which a read was under way; the reads may have had pauses.
      this.#child('fetch', firstFetch, firstFetch + (this.#prefetch?.fetchMs ?? 0), inner)
      this.#child('install', firstInstall, firstInstall && until, inner)
      prefetch.end(this.#wall(until))
    }
    this.#child('ready', connected, ready, within)
    root.end(this.#wall(end))
  }

  #span(
    name: string,
    fromMs: number,
    parent: Context,
    attributes: Record<string, string | number | boolean> = {},
  ): Span {
    const tracer = this.#api.trace.getTracer('reap-trace')
    return tracer.startSpan(name, { startTime: this.#wall(fromMs), attributes }, parent)
  }

  #child(name: string, from: number | undefined, to: number | undefined, parent: Context): void {
    if (from === undefined || to === undefined) return
    this.#span(`reap-trace.${name}`, from, parent).end(this.#wall(to))
  }

  /** Milliseconds of the epoch, for a time of CLOCK_MONOTONIC. */
  #wall(atMs: number): number {
    return Date.now() - (monotonicMs() - atMs)
  }
}
