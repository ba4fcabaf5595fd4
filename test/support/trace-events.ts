import { readFile } from 'node:fs/promises'
import { expect } from 'vitest'
import { type RestoreRecord, readRestoreRecord } from '../../src/index.js'
import type { TraceEvent } from '../../src/report/chrome-trace.js'
import { run } from './cli-process.js'

const metadata = ['process_name', 'thread_name', 'thread_sort_index']

/** Whether all digits of a time are of whole nanoseconds: a reader may cut off the rest. */
const isTime = (us: number | undefined): boolean =>
  us !== undefined && us >= 0 && us === Math.round(us * 1000) / 1000

/** Whether an event has what the documentation of the Trace Event Format asks of its phase. */
function hasFields({ ph, name, pid, tid, ts, dur, cat, id, s, args }: TraceEvent): boolean {
  if (name === '' || !Number.isInteger(pid) || !Number.isInteger(tid)) return false
  if (ph === 'M') {
    const value = name === 'thread_sort_index' ? args?.sort_index : args?.name
    return metadata.includes(name) && value !== undefined
  }
  if (ph === 'X') return isTime(ts) && isTime(dur)
  if (ph === 'i') return isTime(ts) && ['g', 'p', 't'].includes(s!)
  return ['b', 'e'].includes(ph) && isTime(ts) && Boolean(cat && id)
}

/** Spans that begin within another one of their row and end after it ("Complete Events"). */
function overlapping(spans: readonly TraceEvent[]): TraceEvent[] {
  const rows = new Map<number, number[]>()
  const from = ({ ts }: TraceEvent) => Math.round(ts! * 1000)
  const to = (span: TraceEvent) => from(span) + Math.round(span.dur! * 1000)
  const sorted = spans.toSorted((a, b) => from(a) - from(b) || to(b) - to(a))
  return sorted.filter((span) => {
    const open = (rows.get(span.tid) ?? []).filter((end) => end > from(span))
    rows.set(span.tid, [...open, to(span)])
    return open.some((end) => end < to(span))
  })
}

/** Events without their other half, of the same category and id ("Async Events"). */
function unpaired(halves: readonly TraceEvent[]): TraceEvent[] {
  const open = new Map<string, TraceEvent>()
  const ends = halves.filter((half) => {
    const key = `${half.cat} ${half.id}`
    const begin = open.get(key)
    if (half.ph === 'b') open.set(key, half)
    else open.delete(key)
    if (half.ph === 'b') return begin !== undefined
    return begin?.name !== half.name || begin.tid !== half.tid || begin.ts! > half.ts!
  })
  return [...ends, ...open.values()]
}

/** Checks events against the documentation of the Trace Event Format. */
export function checkTraceEvents(events: readonly TraceEvent[]): void {
  expect(events.filter((event) => !hasFields(event))).toEqual([])
  const rows = new Set(events.filter(({ name }) => name === 'thread_name').map(({ tid }) => tid))
  expect(events.filter(({ ph, tid }) => ph !== 'M' && !rows.has(tid))).toEqual([])
  expect(overlapping(events.filter(({ ph }) => ph === 'X'))).toEqual([])
  expect(unpaired(events.filter(({ ph }) => ph === 'b' || ph === 'e'))).toEqual([])
}

/** Times that are known. */
const known = (times: readonly (number | undefined)[]): number[] =>
  times.filter((time) => time !== undefined)

const areInOrder = (...times: readonly (number | undefined)[]): boolean =>
  known(times).every((time, i, all) => i === 0 || all[i - 1]! <= time)

const expectInOrder = (...times: readonly (number | undefined)[]): void =>
  expect(known(times)).toEqual(known(times).toSorted((a, b) => a - b))

/**
 * Checks what `restore --trace` has written of a VM that was served until its end, and that `report`
 * reads it.
 */
export async function checkTrace(path: string): Promise<RestoreRecord> {
  checkTraceEvents(JSON.parse(await readFile(path, 'utf8')).traceEvents)
  const record = await readRestoreRecord(path)
  expect(record).toMatchObject({ backend: 'uffd', state: 'vm-exited', timeline: { missing: 0 } })
  const { times, timeline, stats, snapshot } = record
  const { started, listening, accepted, connected, closed } = times
  expect([accepted, connected, closed]).not.toContain(undefined)
  for (const step of [times.firstFault, times.prefetched, times.ready]) {
    expectInOrder(started, listening, accepted, connected, step, closed)
  }
  expectInOrder(started, times.firstFetch, times.firstInstall, times.prefetched)
  const { fetches, installs, faults } = timeline!
  expect(fetches.length > 0).toBe(times.firstFetch !== undefined)
  expect(installs.length > 0).toBe(times.firstInstall !== undefined)
  expect(faults).toHaveLength(stats!.faults)
  const { memoryBytes, pageSize } = snapshot
  expect([
    ...fetches.filter(({ from, to }) => !areInOrder(started, from, to, closed)),
    ...installs.filter(({ from, to }) => !areInOrder(accepted, from, to, closed)),
    ...faults.filter(({ from, to }) => !areInOrder(connected, from, to, closed)),
    ...faults.filter(({ offset }) => offset % pageSize > 0 || offset >= memoryBytes),
  ]).toEqual([])
  const page = `${path}.html`
  const { code, stderr } = await run(['report', path, '-o', page])
  expect(code, stderr).toBe(0)
  expect(await readFile(page, 'utf8')).toMatch(/^<!doctype html>/i)
  return record
}
