import { truncate } from 'node:fs/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { ReapTraceError, ServeEvent } from '../../src/index.js'
import { changePages, copiedPair, order, type Pair } from '../support/proofs.js'
import { eventLog, recordedSet, scene, serveScene } from '../support/scratch.js'

/** All events that there are, in the order in which a restore from a stale working set has them. */
const types = ['listening', 'connected', 'prefetched', 'warning', 'compared', 'closed']

/** Restores from a stale working set to the end, every page right. */
async function restoreStale(onEvent: (event: ServeEvent) => unknown): Promise<void> {
  const pair: Pair = await copiedPair()
  await changePages(pair.memoryFile, order.slice(0, 2))
  const { vmm, socketPath, memoryFile, workingSet } = pair
  const handler = await serveScene(pair, { workingSet, onEvent })
  await vmm.handshake(socketPath)
  expect(await handler.prefetched).toMatchObject({ complete: true })
  expect((await vmm.verify(memoryFile)).wrong).toEqual([])
  expect(await handler.compared).toMatchObject({ mismatchedPageCount: 2 })
  expect(await handler.close()).toMatchObject({ state: 'vm-killed' })
  await expect(handler.closed).resolves.toMatchObject({ state: 'vm-killed' })
}

/** Warnings of this process from here on. */
function processWarnings(): Error[] {
  const warnings: Error[] = []
  const note = (warning: Error) => void warnings.push(warning)
  process.on('warning', note)
  onTestFinished(() => void process.off('warning', note))
  return warnings
}

describe('events', () => {
  test('tell the story in order', async () => {
    const s = await scene({ pages: 64 })
    const log = eventLog()
    const workingSet = await recordedSet(s, [1, 2, 3])
    const handler = await serveScene(s, { workingSet, onEvent: log.onEvent })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await handler.close()
    expect(log.types()).toEqual(['listening', 'connected', 'prefetched', 'closed'])
    expect(log.events[0]).toMatchObject({ type: 'listening', socketPath: s.socketPath })
    expect(log.events[1]).toMatchObject({ pid: s.vmm.pid, pageSize: 4096, memoryBytes: 64 * 4096 })
    expect(log.events[2]).toMatchObject({ pageCount: 3, complete: true })
    expect(log.events[3]).toMatchObject({ state: 'vm-killed', stats: { prefetched: 3 } })
  })

  test('say where the guest memory is, as the VMM has mapped it', async () => {
    const s = await scene({ pages: 64 })
    await s.vmm.drop()
    const { regions } = await s.vmm.map(4096, [16 * 4096, 48 * 4096], { gap: 4096 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    const expected = regions.map(({ baseAddress, size, offset }) => {
      return { baseAddress: Number(baseAddress), size, offset }
    })
    expect((await handler.connected).regions).toEqual(expected)
    expect(expected.every(({ baseAddress }) => Number.isSafeInteger(baseAddress))).toBe(true)
  })

  test('are plain JSON, each of them', async () => {
    const log = eventLog()
    await restoreStale(log.onEvent)
    expect(log.types()).toEqual(types)
    for (const event of log.events) {
      const read = JSON.parse(JSON.stringify(event))
      if (event.type === 'warning') expectSame(read.error, event.error)
      else expect(read).toEqual(event)
    }
  })

  test('are plain JSON with the error of a session that has failed', async () => {
    const s = await scene({ pages: 64, holes: false })
    const log = eventLog()
    const handler = await serveScene(s, { onEvent: log.onEvent })
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    await truncate(s.memoryFile, 4096)
    await expect(s.vmm.read(50)).rejects.toThrow()
    const error = await handler.closed.catch((error) => error)
    const read = JSON.parse(JSON.stringify(log.events.at(-1)))
    expect(read).toMatchObject({ type: 'closed', state: 'vm-killed', stats: { installed: 1 } })
    expectSame(read.error, error)
  })

  function expectSame(read: Record<string, unknown>, error: ReapTraceError): void {
    const { name, code, message, hint, path, check } = error
    expect(hint).toMatch(/\.$/)
    expect(read).toMatchObject({ name, code, message, hint, path, check })
  }
})

describe('a listener that throws', () => {
  test('at every event harms no session, and each time is one warning of the process', async () => {
    const warnings = processWarnings()
    const log = eventLog()
    await restoreStale((event) => {
      log.onEvent(event)
      throw new Error(`mine, at ${event.type}`)
    })
    expect(log.types()).toEqual(types)
    await expect.poll(() => warnings.length).toBe(types.length)
    for (const [i, warning] of warnings.entries()) {
      expect(warning.name).toBe('ReapTraceWarning')
      expect(warning.message).toContain(`mine, at ${types[i]}`)
    }
  })

  test('something else than an error is reported as well', async () => {
    const warnings = processWarnings()
    const handler = await serveScene(await scene({ pages: 64 }), {
      onEvent: ({ type }) => {
        if (type === 'listening') throw undefined
      },
    })
    expect(await handler.close()).toMatchObject({ state: 'closed' })
    await expect
      .poll(() => warnings.map(({ message }) => message))
      .toEqual([expect.stringContaining('undefined')])
  })
})
