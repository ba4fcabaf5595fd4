import type { FaultSpan } from '../uffd/timing.js'
import type { RestoreRecord } from './record.js'

/**
 * Event of the Trace Event Format, which ui.perfetto.dev and chrome://tracing open. Times are in
 * microseconds.
 */
export interface TraceEvent {
  readonly name: string
  /** `X`: a span, `b` and `e`: begin and end of a span that overlaps others, `i`: a mark, `M`: metadata. */
  readonly ph: 'X' | 'b' | 'e' | 'i' | 'M'
  readonly pid: number
  readonly tid: number
  readonly ts?: number
  readonly dur?: number
  readonly cat?: string
  readonly id?: string
  /** Scope of a mark: the whole trace, or its thread. */
  readonly s?: 'g' | 't'
  readonly args?: Readonly<Record<string, string | number | boolean>>
}

const PID = 1
/** Rows of the picture; prefetch threads follow. */
const rows = { command: 1, session: 2, faults: 3, removals: 4 } as const
const FIRST_THREAD = 10

/**
 * A restore in the Trace Event Format
 * (https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU). Time 0 is the
 * call of `restore()`.
 */
export function traceEventsOf({
  backend,
  times,
  prefetch,
  timeline,
}: Pick<RestoreRecord, 'backend' | 'times' | 'prefetch' | 'timeline'>): TraceEvent[] {
  // Whole nanoseconds: readers cut off the rest, after which a span might overlap the next one.
  const ns = (ms: number): number => Math.round((ms - times.started) * 1e6)
  const at = (ms: number): number => ns(ms) / 1000
  const span = (
    row: number,
    name: string,
    from: number | undefined,
    to: number | undefined,
    args?: TraceEvent['args'],
  ): TraceEvent[] =>
    from === undefined || to === undefined
      ? []
      : [
          {
            name,
            ph: 'X',
            pid: PID,
            tid: row,
            ts: at(from),
            dur: (ns(to) - ns(from)) / 1000,
            ...(args && { args }),
          },
        ]
  const name = (row: number, text: string): TraceEvent[] => [
    { name: 'thread_name', ph: 'M', pid: PID, tid: row, args: { name: text } },
    { name: 'thread_sort_index', ph: 'M', pid: PID, tid: row, args: { sort_index: row } },
  ]
  const mark = (row: number, text: string, ms: number, args?: TraceEvent['args']): TraceEvent => ({
    name: text,
    ph: 'i',
    pid: PID,
    tid: row,
    ts: at(ms),
    s: row === rows.session ? 'g' : 't',
    ...(args && { args }),
  })
  const fault = ({ from, to, class: kind, offset }: FaultSpan, index: number): TraceEvent[] => {
    const common = { cat: 'fault', id: `${index}`, pid: PID, tid: rows.faults, name: kind }
    return [
      { ...common, ph: 'b', ts: at(from), args: { offset } },
      { ...common, ph: 'e', ts: at(to) },
    ]
  }
  const { fetches = [], installs = [], faults = [], removals = [], missing = 0 } = timeline ?? {}
  const hasHandler = backend === 'uffd'
  const threads = new Set([...fetches, ...installs].map(({ thread }) => thread))
  const end = times.ready ?? times.prefetched ?? times.closed

  return [
    { name: 'process_name', ph: 'M', pid: PID, tid: 0, args: { name: 'reap-trace restore' } },
    ...name(rows.command, 'COMMAND'),
    ...name(rows.session, hasHandler ? 'session' : 'page cache'),
    ...(hasHandler
      ? [...name(rows.faults, 'faults'), ...name(rows.removals, 'memory given back')]
      : span(rows.session, 'fetch', times.firstFetch, times.prefetched, {
          bytes: prefetch?.bytes ?? 0,
        })),
    ...[...threads].flatMap((thread) => name(FIRST_THREAD + thread, `prefetch ${thread}`)),
    ...span(rows.command, 'COMMAND', times.commandStarted, times.commandEnded ?? end),
    ...span(rows.session, 'open', times.started, times.listening),
    ...span(rows.session, 'listen', times.listening, times.accepted),
    ...span(rows.session, 'handshake', times.accepted, times.connected),
    ...span(rows.session, 'serve', times.connected, times.closed),
    ...(times.prefetched === undefined
      ? []
      : [
          mark(
            rows.session,
            'prefetched',
            times.prefetched,
            hasHandler ? { missingSpans: missing } : undefined,
          ),
        ]),
    ...(times.ready === undefined ? [] : [mark(rows.session, 'ready', times.ready)]),
    ...fetches.flatMap(({ from, to, bytes, waited, thread }) =>
      span(FIRST_THREAD + thread, 'fetch', from, to, { bytes, waitedForDisk: waited }),
    ),
    ...installs.flatMap(({ from, to, bytes, thread }) =>
      span(FIRST_THREAD + thread, 'install', from, to, { bytes }),
    ),
    ...faults.flatMap(fault),
    ...removals.map(({ at: ms, offset, bytes }) =>
      mark(rows.removals, 'given back', ms, { offset, bytes }),
    ),
  ]
}
