import { getEventListeners } from 'node:events'
import { existsSync } from 'node:fs'
import { truncate } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { serve } from '../../src/index.js'
import {
  eventLog,
  recordedSet,
  type Scene,
  scene,
  scrambled,
  serveScene,
} from '../support/scratch.js'

describe('a session ends', () => {
  test('detach() gives the guest all its memory and lets it live', async () => {
    const s = await scene({ pages: 2048, regions: 2, gap: 4096 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    await s.vmm.remove(50, 10)
    await s.vmm.read(3, 2000)
    await expect(handler.detach()).resolves.toMatchObject({ state: 'detached' })
    await expect(handler.closed).resolves.toMatchObject({ state: 'detached' })
    const expected = { removed: [[50, 59]] as const }
    expect((await s.vmm.verify(s.memoryFile, expected)).wrong).toEqual([])
    await s.vmm.remove(100, 5)
    expect((await s.vmm.read(100)).zero).toEqual([true])
  })

  test('detach() while the guest touches everything', async () => {
    const s = await scene({ pages: 4096 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    const sweep = s.vmm.sweep(4, 11, s.memoryFile)
    await handler.detach()
    expect(await sweep).toMatchObject({ wrongCount: 0 })
  })

  test('detach() needs a VM', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await expect(handler.detach()).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await handler.close()
    await expect(handler.detach()).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  })

  test('close() kills a VM that is alive, and says so', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    const [closed, again] = await Promise.all([handler.close(), handler.close()])
    expect(closed).toMatchObject({ state: 'vm-killed', stats: { faults: 0 } })
    expect(again).toBe(closed)
    expect(await handler.close()).toBe(closed)
    expect(await s.vmm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test("close({ vm: 'leave' }) leaves it, frozen at its next fault", async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    expect(await handler.close({ vm: 'leave' })).toMatchObject({ state: 'vm-left' })
    await s.vmm.bg('stuck', 'read 2')
    expect(await s.vmm.wait('stuck', 100)).toBeUndefined()
    expect((await s.vmm.present(1, 1)).count).toBe(1)
  })

  test('close() before anybody connected', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    expect(await handler.close()).toMatchObject({ state: 'closed' })
    await expect(handler.connected).rejects.toMatchObject({ code: 'ERR_CLOSED' })
    await expect(handler.prefetched).rejects.toMatchObject({ code: 'ERR_CLOSED' })
  })

  test('a VM that exits is a result, not an error', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1, 2)
    await s.vmm.exit(0)
    expect(await handler.closed).toMatchObject({ state: 'vm-exited', stats: { faults: 2 } })
  })

  test('a VM killed at any moment ends its session, and only that', async () => {
    const others = await scene({ pages: 1024 })
    const other = await serveScene(others)
    await others.vmm.handshake(others.socketPath)
    for (let round = 0; round < 12; round++) {
      const s = await scene({ pages: 2048 })
      const workingSet = round % 2 ? await recordedSet(s, scrambled(2048)) : undefined
      const handler = await serveScene(s, { workingSet })
      await s.vmm.handshake(s.socketPath)
      // One that is gone before it is accepted is a refused peer.
      await handler.connected
      const sweep = s.vmm.sweep(2, round, s.memoryFile).catch(() => {})
      while (handler.stats().installed < round * 100) {
        await new Promise((resolve) => setImmediate(resolve))
      }
      await s.vmm.kill()
      await sweep
      expect((await handler.closed).state).toBe('vm-exited')
    }
    expect((await others.vmm.verify(others.memoryFile)).wrong).toEqual([])
    expect((await other.close()).state).toBe('vm-killed')
  })

  test('await using closes', async () => {
    const s = await scene({ pages: 64 })
    {
      await using handler = await serve(optionsOf(s))
      await s.vmm.handshake(s.socketPath)
      await handler.connected
    }
    expect(await s.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
  })

  test('close() with an unknown end is misuse', async () => {
    const handler = await serveScene(await scene({ pages: 64 }))
    expect(() => handler.close({ vm: 'pause' as never })).toThrow(TypeError)
    expect((await handler.close()).state).toBe('closed')
  })
})

describe('after a failure', () => {
  /** A session whose VM was killed, since its memory file was cut short. */
  async function failed() {
    const s = await scene({ pages: 64, holes: false })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    await truncate(s.memoryFile, 4096)
    await expect(s.vmm.read(50)).rejects.toThrow(/the VMM ended \(SIGKILL\)/)
    return handler
  }

  test('close() resolves with the result, and closed rejects with the failure', async () => {
    const handler = await failed()
    const failure = { code: 'ERR_SOURCE_READ', check: 'cut-short' }
    const result = { state: 'vm-killed', stats: { installed: 1 } }
    expect(await handler.close()).toMatchObject(result)
    await expect(handler.closed).rejects.toMatchObject(failure)
    expect(await handler.close({ vm: 'leave' })).toMatchObject(result)
    expect(handler.stats()).toEqual((await handler.close()).stats)
  })

  test('the end of an `await using` block does not throw', async () => {
    const handler = await failed()
    await expect(handler.closed).rejects.toMatchObject({ code: 'ERR_SOURCE_READ' })
    {
      await using again = handler
      expect(again.stats().installed).toBe(1)
    }
  })

  test('of the start, close() resolves as well', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { connectTimeoutMs: 1 })
    await expect(handler.closed).rejects.toMatchObject({ code: 'ERR_HANDSHAKE_TIMEOUT' })
    expect(await handler.close()).toMatchObject({ state: 'closed', stats: { faults: 0 } })
    await handler[Symbol.asyncDispose]()
  })
})

describe('a signal', () => {
  const reason = new Error('enough')

  test('ends the session with its reason', async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const handler = await serveScene(s, { signal: controller.signal })
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    controller.abort(reason)
    await expect(handler.closed).rejects.toBe(reason)
    expect(await handler.close()).toMatchObject({ state: 'vm-killed' })
    expect(await s.vmm.exited).toMatchObject({ signal: 'SIGKILL' })
    await expect(serve(optionsOf(s, controller.signal))).rejects.toBe(reason)
  })

  test('leaves the VM where that is the choice', async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const handler = await serveScene(s, { signal: controller.signal, vm: 'leave' })
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    controller.abort(reason)
    await expect(handler.closed).rejects.toBe(reason)
    expect(await handler.close()).toMatchObject({ state: 'vm-left' })
    expect(await s.vmm.fds()).toBeGreaterThan(0)
  })
})

test('many sessions share a signal for both, which ends them all and leaves no listener', async () => {
  const here = await scene({ pages: 4 })
  const shared = new AbortController()
  const { signal } = shared
  const warnings: Error[] = []
  const onWarning = (warning: Error) => warnings.push(warning)
  process.on('warning', onWarning)
  const open = (i: number) =>
    serveScene({ ...here, socketPath: `${here.socketPath}${i}` }, { signal, startSignal: signal })
  const handlers = await Promise.all(Array.from({ length: 12 }, (_, i) => open(i)))
  // One ends before the others.
  await handlers[0]!.close()
  expect(getEventListeners(signal, 'abort')).toHaveLength(1)
  shared.abort('enough')
  for (const { closed } of handlers.slice(1)) await expect(closed).rejects.toBe('enough')
  expect(getEventListeners(signal, 'abort')).toEqual([])
  // Node emits a warning in the next tick.
  await new Promise(setImmediate)
  process.off('warning', onWarning)
  expect(warnings).toEqual([])
})

describe('a signal for the start', () => {
  const reason = new Error('too late')

  test('that has aborted refuses it', async () => {
    const s = await scene({ pages: 64 })
    const startSignal = AbortSignal.abort(reason)
    await expect(serveScene(s, { startSignal })).rejects.toBe(reason)
    expect(existsSync(s.socketPath)).toBe(false)
  })

  test('ends a session to which nobody has connected, with its reason', async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const log = eventLog()
    const { signal: startSignal } = controller
    const handler = await serveScene(s, { startSignal, onEvent: log.onEvent })
    controller.abort(reason)
    for (const stage of ['connected', 'prefetched', 'closed'] as const) {
      await expect(handler[stage]).rejects.toBe(reason)
    }
    expect(await handler.close()).toMatchObject({ state: 'closed' })
    expect(log.types()).toEqual(['listening', 'closed'])
    expect(existsSync(s.socketPath)).toBe(false)
  })

  test('ends a session before its prefetch has, and the VM with it', async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const handler = await serveScene(s, {
      workingSet: await recordedSet(s, [1, 2, 3]),
      startSignal: controller.signal,
      onEvent: ({ type }) => type === 'connected' && controller.abort(reason),
    })
    await s.vmm.handshake(s.socketPath).catch(() => {})
    await expect(handler.closed).rejects.toBe(reason)
    expect(await handler.close()).toMatchObject({ state: 'vm-killed' })
    expect(await s.vmm.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test.each([
    ['with a working set', true],
    ['without one', false],
  ])('does nothing once the prefetch is over, %s', async (_, hasSet) => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const handler = await serveScene(s, {
      workingSet: hasSet ? await recordedSet(s, [1, 2, 3]) : undefined,
      startSignal: controller.signal,
    })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    controller.abort(reason)
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect(await handler.close()).toMatchObject({ state: 'vm-killed' })
    await expect(handler.closed).resolves.toMatchObject({ state: 'vm-killed' })
  })

  test("does nothing in a listener for 'prefetched' any more", async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const handler = await serveScene(s, {
      workingSet: await recordedSet(s, [1, 2, 3]),
      startSignal: controller.signal,
      onEvent: ({ type }) => type === 'prefetched' && controller.abort(reason),
    })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    await handler.close()
    await expect(handler.closed).resolves.toMatchObject({ state: 'vm-killed' })
  })

  test('may be the signal for the whole session as well', async () => {
    const s = await scene({ pages: 64 })
    const controller = new AbortController()
    const { signal } = controller
    const handler = await serveScene(s, { signal, startSignal: signal })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    controller.abort(reason)
    await expect(handler.closed).rejects.toBe(reason)
  })

  test('is let go of, as the other is', async () => {
    const s = await scene({ pages: 64 })
    const [start, whole] = [new AbortController().signal, new AbortController().signal]
    const handler = await serveScene(s, { startSignal: start, signal: whole })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    expect(getEventListeners(start, 'abort')).toEqual([])
    expect(getEventListeners(whole, 'abort')).toHaveLength(1)
    await handler.close()
    expect(getEventListeners(whole, 'abort')).toEqual([])
  })
})

const optionsOf = ({ socketPath, memoryFile }: Scene, signal?: AbortSignal) => ({
  socketPath,
  snapshot: { memoryFile },
  signal,
})
