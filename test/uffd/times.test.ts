import { writeFileSync } from 'node:fs'
import { describe, expect, onTestFinished, test } from 'vitest'
import { markReady, ReadyMark } from '../../src/cli/session/ready-mark.js'
import type { FaultStats, ServeEvent } from '../../src/index.js'
import { recordedSet, scene, serveScene } from '../support/scratch.js'

const monotonicMs = () => Number(process.hrtime.bigint()) / 1e6

/**
 * Time of this moment, whose milliseconds as a double are below its nanosecond. There are such
 * times from 2^26 ms of uptime on.
 */
function justBelowNanosecondMs(): number {
  let ns = 0
  for (let attempt = 0; attempt < 1000; attempt++) {
    ns = Number(process.hrtime.bigint())
    if (Math.trunc((ns / 1e6) * 1e6) < ns) break
  }
  return ns / 1e6
}

/** Blocks the JavaScript thread until the engine reaches a step, and a moment longer. */
function blockUntil(isReached: () => boolean): void {
  const clock = new Int32Array(new SharedArrayBuffer(4))
  const wait = () => Atomics.wait(clock, 0, 0, 5)
  for (const end = monotonicMs() + 30_000; !isReached() && monotonicMs() < end; ) wait()
  wait()
}

describe('times of a session', () => {
  test('steps follow each other and are those of the events', async () => {
    const before = monotonicMs()
    const s = await scene({ pages: 256 })
    const events: ServeEvent[] = []
    const handler = await serveScene(s, {
      workingSet: await recordedSet(s, [1, 2, 3, 10, 11]),
      onEvent: (event) => events.push(event),
    })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.read(50)
    handler.ready()
    await s.vmm.exit(0)
    const { times } = await handler.closed
    const order = ['listening', 'accepted', 'connected', 'prefetched', 'ready', 'closed'] as const
    const reached = order.map((step) => times[step] as number)
    expect(reached).toEqual([...reached].sort((a, b) => a - b))
    expect(times.listening).toBeGreaterThan(before)
    expect(times.closed).toBeLessThan(monotonicMs())
    expect(times.firstFault).toBeGreaterThanOrEqual(times.connected as number)
    expect(times.firstInstall).toBeGreaterThanOrEqual(times.connected as number)
    expect(times.firstInstall).toBeLessThanOrEqual(times.prefetched as number)
    expect(times.firstFetch).toBeLessThan(times.firstInstall as number)
    for (const event of events) {
      if (event.type === 'listening' || event.type === 'ready') {
        expect(event.atMs).toBe(times[event.type])
      } else expect(event.atMs).toBeGreaterThanOrEqual(times.listening)
    }
    expect(handler.times()).toEqual(times)
  })

  test('a JavaScript thread that is blocked gets the right times later', async () => {
    const s = await scene({ pages: 16 })
    let connectedAt = 0
    const handler = await serveScene(s, {
      onEvent: (event) => {
        if (event.type === 'connected') connectedAt = event.atMs
      },
    })
    const shaken = s.vmm.handshake(s.socketPath)
    blockUntil(() => handler.times().connected !== undefined)
    const unblocked = monotonicMs()
    await shaken
    await handler.connected
    expect(connectedAt).toBeLessThan(unblocked)
    expect(connectedAt).toBeCloseTo(handler.times().connected as number, 0)
  })

  test('a step that was not reached has no time', async () => {
    const s = await scene({ pages: 16 })
    const handler = await serveScene(s)
    expect(Object.keys(handler.times())).toEqual(['listening'])
    const { times, statsAtReady } = await handler.close()
    expect(Object.keys(times)).toEqual(['listening', 'closed'])
    expect(statsAtReady).toBeUndefined()
  })

  test('the first mark of the application counts, with the figures of its moment', async () => {
    const s = await scene({ pages: 256 })
    const marks: number[] = []
    const handler = await serveScene(s, {
      record: true,
      onEvent: (event) => {
        if (event.type === 'ready') marks.push(event.atMs)
      },
    })
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1, 2, 3)
    const at = justBelowNanosecondMs()
    handler.ready(at)
    await s.vmm.read(4, 5)
    handler.ready()
    await s.vmm.exit(0)
    const { times, stats, statsAtReady } = await handler.closed
    expect(marks).toEqual([at])
    expect(times.ready).toBe(at)
    expect(statsAtReady?.faults).toBe(3)
    expect(stats.faults).toBe(5)
    handler.ready()
    expect(marks).toHaveLength(1)
  })

  test('a mark of a COMMAND counts, though it arrives with the end of the VM', async () => {
    const s = await scene({ pages: 16 })
    const marks: number[] = []
    const pieces: Promise<unknown>[] = []
    const handler = await serveScene(s, {
      onEvent: (event) => {
        if (event.type === 'ready') marks.push(event.atMs)
        if (event.type !== 'connected') return
        // The mark and the end of the VM wait for the thread, in this order.
        writeFileSync(mark.path, '\n')
        pieces.push(s.vmm.read(1), s.vmm.exit(0))
        blockUntil(() => handler.times().closed !== undefined)
      },
    })
    const mark = await ReadyMark.open((atMs) => markReady({ handler }, atMs))
    onTestFinished(() => mark.close())
    await s.vmm.handshake(s.socketPath)
    const { times, statsAtReady } = await handler.closed
    expect(times.ready).toBeCloseTo(times.closed as number, 3)
    expect(statsAtReady?.faults).toBe(1)
    expect(marks).toHaveLength(1)
    await Promise.all(pieces)
  })

  test('a time that is none is refused', async () => {
    const handler = await serveScene(await scene({ pages: 16 }))
    const { listening } = handler.times()
    const none = [0, -1, Number.NaN, Number.POSITIVE_INFINITY]
    // Of another clock, before the session, and to come.
    const others = [Date.now(), performance.now(), listening - 1, monotonicMs() + 60_000]
    for (const wrong of [...none, ...others]) {
      expect(() => handler.ready(wrong)).toThrow(TypeError)
    }
  })

  test('a mark after the end of the VM does not count, though its event is yet to come', async () => {
    const s = await scene({ pages: 16 })
    const marks: number[] = []
    const handler = await serveScene(s, {
      onEvent: (event) => {
        if (event.type === 'ready') marks.push(event.atMs)
      },
    })
    await s.vmm.handshake(s.socketPath)
    const { pid } = await handler.connected
    process.kill(pid, 'SIGKILL')
    // Blocks this thread, so that no event comes.
    while (handler.times().closed === undefined);
    handler.ready()
    const { times, statsAtReady } = await handler.closed
    expect(marks).toEqual([])
    expect(times.ready).toBeUndefined()
    expect(statsAtReady).toBeUndefined()
  })
})

describe('waits of faults', () => {
  const counted = ({ waits }: FaultStats) =>
    Object.fromEntries(
      Object.entries(waits).map(([name, { count, buckets }]) => {
        expect(buckets.reduce((sum, [, faults]) => sum + faults, 0)).toBe(count)
        return [name, count]
      }),
    )

  test('each fault is in the distribution of its class', async () => {
    const s = await scene({ pages: 256 })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, [1, 2, 3]) })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.read(1, 2, 60, 70, 80)
    await s.vmm.exit(0)
    const { stats } = await handler.closed
    expect(counted(stats)).toEqual({ 'on-demand': 0, late: 0, residual: 3 })
    expect(stats.stalledMs).toBeGreaterThan(0)
    expect(stats.stalledMs).toBeLessThanOrEqual(stats.waits.residual.totalUs / 1000 + 0.001)
    expect(stats.slowest.map(({ offset }) => offset / 4096).sort()).toEqual([60, 70, 80])
    expect(stats.slowest[0]).toMatchObject({
      class: 'residual',
      waitUs: stats.waits.residual.maxUs,
    })
  })

  test('without a working set they are on demand', async () => {
    const s = await scene({ pages: 256 })
    const handler = await serveScene(s, { record: true })
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1, 9, 30)
    await s.vmm.exit(0)
    expect(counted((await handler.closed).stats)).toEqual({ 'on-demand': 3, late: 0, residual: 0 })
  })
})

describe('the timeline', () => {
  test('has each fetch, install, fault and removal', async () => {
    const s = await scene({ pages: 1024 })
    const pages = Array.from({ length: 600 }, (_, i) => i)
    const handler = await serveScene(s, {
      workingSet: await recordedSet(s, pages),
      timeline: true,
    })
    await s.vmm.handshake(s.socketPath)
    const { bytes } = await handler.prefetched
    await s.vmm.read(700, 900)
    await s.vmm.exit(0)
    const { times } = await handler.closed
    const { fetches, installs, faults, removals, missing } = handler.timeline()
    expect(missing).toBe(0)
    const sum = (spans: readonly { readonly bytes: number }[]) =>
      spans.reduce((total, span) => total + span.bytes, 0)
    expect(sum(fetches)).toBe(bytes)
    expect(sum(installs)).toBe(600 * 4096)
    expect(faults.map(({ offset }) => offset / 4096)).toEqual([700, 900])
    expect(removals).toEqual([])
    for (const { from, to } of [...fetches, ...installs, ...faults]) {
      expect(from).toBeLessThan(to)
      expect(from).toBeGreaterThanOrEqual(times.listening)
      expect(to).toBeLessThanOrEqual(times.closed as number)
    }
    expect(Math.min(...fetches.map(({ from }) => from))).toBe(times.firstFetch)
  })

  test('is there only if it was asked for', async () => {
    const handler = await serveScene(await scene({ pages: 16 }))
    expect(() => handler.timeline()).toThrow('pass timeline: true')
  })
})
