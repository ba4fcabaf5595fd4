import { expect, test } from 'vitest'
import { type TraceEvent, traceEventsOf } from '../../src/report/chrome-trace.js'
import { madeRecord } from '../support/restore-records.js'
import { checkTraceEvents } from '../support/trace-events.js'

const times = {
  started: 1000,
  commandStarted: 1002,
  listening: 1001,
  accepted: 1010,
  connected: 1011,
  firstFetch: 1003,
  firstInstall: 1012,
  prefetched: 1020,
  ready: 1025,
  closed: 1100,
}
const timeline = {
  fetches: [{ from: 1003, to: 1008.5, bytes: 1 << 20, waited: true, thread: 1 }],
  installs: [{ from: 1012, to: 1014, bytes: 1 << 20, thread: 0 }],
  faults: [
    { from: 1013, to: 1015, class: 'late', offset: 4096 },
    { from: 1014, to: 1016, class: 'residual', offset: 8192 },
  ],
  removals: [{ at: 1030, offset: 0, bytes: 4096 }],
  missing: 7,
} as const

const record = { backend: 'uffd', times, timeline } as const

const named = (events: TraceEvent[], name: string) => events.filter((event) => event.name === name)

test('a trace has the steps of the session as spans of one row, from the call on', () => {
  const events = traceEventsOf(record)
  expect(named(events, 'open')).toMatchObject([{ ph: 'X', ts: 0, dur: 1000 }])
  expect(named(events, 'listen')).toMatchObject([{ ts: 1000, dur: 9000 }])
  expect(named(events, 'handshake')).toMatchObject([{ ts: 10_000, dur: 1000 }])
  expect(named(events, 'serve')).toMatchObject([{ ts: 11_000, dur: 89_000 }])
  expect(named(events, 'ready')).toMatchObject([{ ph: 'i', s: 'g', ts: 25_000 }])
  expect(named(events, 'prefetched')).toMatchObject([{ args: { missingSpans: 7 } }])
  expect(named(events, 'COMMAND')).toMatchObject([{ ts: 2000, dur: 23_000 }])
})

test('fetches and installs are in the rows of their threads', () => {
  const events = traceEventsOf(record)
  const rowOf = (text: string) =>
    named(events, 'thread_name').find(({ args }) => args?.name === text)?.tid
  expect(named(events, 'fetch')).toMatchObject([
    { tid: rowOf('prefetch 1'), ts: 3000, dur: 5500, args: { waitedForDisk: true } },
  ])
  expect(named(events, 'install')).toMatchObject([{ tid: rowOf('prefetch 0'), dur: 2000 }])
})

// Spans of one row must be nested (Trace Event Format, "Complete Events"); faults overlap.
test('faults are pairs of a begin and an end with an id each', () => {
  const events = traceEventsOf(record)
  const begins = events.filter(({ ph }) => ph === 'b')
  const ends = events.filter(({ ph }) => ph === 'e')
  expect(begins.map(({ name, args }) => [name, args?.offset])).toEqual([
    ['late', 4096],
    ['residual', 8192],
  ])
  for (const begin of begins) {
    const [end] = ends.filter(({ id, cat }) => id === begin.id && cat === begin.cat)
    expect(end?.ts).toBe((begin.ts as number) + 2000)
  }
})

// Hours after the start of the host, a double has digits beyond the nanosecond.
test('spans of a row do not overlap by a rounding error, hours after the start of the host', () => {
  for (let i = 0; i < 20; i++) {
    const [started, listening] = [58_941_980.438119 + i, 58_941_981.977679 + 1.01 * i]
    const [accepted, connected] = [58_942_050.068844 + 1.02 * i, 58_942_100.309502 + 1.03 * i]
    const more = { started, listening, accepted, connected, closed: 58_943_000.9 }
    checkTraceEvents(traceEventsOf({ backend: 'uffd', times: more }))
  }
})

test('the events have what the documentation of the format asks for', () => {
  checkTraceEvents(traceEventsOf(record))
  checkTraceEvents(traceEventsOf(madeRecord()))
  checkTraceEvents(traceEventsOf(madeRecord(2, false)))
})

test('a restore of which little is known has what is known', () => {
  const events = traceEventsOf({ backend: 'uffd', times: { started: 5, listening: 6 } })
  expect(events.filter(({ ph }) => ph === 'X').map(({ name }) => name)).toEqual(['open'])
})

test('a restore from the page cache has its fetch, and no row for faults', () => {
  const prefetch = {
    ...{ pageCount: 30, residentPageCount: 10, bytes: 20 * 4096, extentCount: 3, complete: true },
    ...{ startedAtMs: 1001, submittedMs: 2, completedMs: 6.5 },
  }
  const events = traceEventsOf({
    backend: 'page-cache',
    prefetch,
    times: {
      ...{ started: 1000, firstFetch: 1001, prefetched: 1007.5 },
      ...{ commandStarted: 1002, ready: 1020, commandEnded: 1030, closed: 1031 },
    },
  })
  const rows = named(events, 'thread_name').map(({ args }) => args?.name)
  expect(rows).toEqual(['COMMAND', 'page cache'])
  expect(named(events, 'fetch')).toMatchObject([{ ph: 'X', ts: 1000, dur: 6500 }])
  expect(named(events, 'fetch')[0]?.args).toEqual({ bytes: 20 * 4096 })
  expect(named(events, 'COMMAND')).toMatchObject([{ ts: 2000, dur: 28_000 }])
  expect(named(events, 'prefetched')).toMatchObject([{ ph: 'i', ts: 7500 }])
  expect(named(events, 'ready')).toMatchObject([{ ph: 'i', ts: 20_000 }])
})
