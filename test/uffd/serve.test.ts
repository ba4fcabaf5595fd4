import { chmod, link, readdir, readFile, rename, truncate, unlink, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type FaultHandler, serve, WorkingSet } from '../../src/index.js'
import { FakeVmm, makeMemoryFile } from '../support/fake-vmm.js'
import {
  expectCounts,
  expectServed,
  range,
  recordedSet,
  scene,
  scrambled,
  scratchFolder,
  serveScene,
} from '../support/scratch.js'

/** Pages installed so far, by fault and prefetch. */
function pagesIn(handler: FaultHandler): number {
  const { installed, zero } = handler.stats()
  return installed + zero
}

describe('on demand', () => {
  test('every page of the guest has the bytes of the memory file', async () => {
    const s = await scene({ pages: 2048, regions: 3, order: 'shuffle', gap: 4096 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    expect(await s.vmm.sweep(4, 7, s.memoryFile, { write: true })).toMatchObject({ wrongCount: 0 })
    await expect.poll(() => pagesIn(handler)).toBe(2048)
    expect(handler.stats().faults).toBeGreaterThanOrEqual(2048)
  })

  test('threads that meet on one page all go on', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    for (const page of range(0, 32)) {
      expect(new Set(await s.vmm.race(page, 8)).size).toBe(1)
    }
    await expect.poll(() => pagesIn(handler)).toBe(32)
  })

  test('holes of the memory file are zeros that nobody reads', async () => {
    const s = await scene({ pages: 64 })
    await truncate(s.memoryFile, 0)
    await truncate(s.memoryFile, 64 * 4096)
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    await expectCounts(handler, { zero: 64, installed: 0, bytesRead: 0 })
  })

  test('the trace has each page once, in the order of first touches', async () => {
    const s = await scene({ pages: 300 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    const order = scrambled(300)
    await s.vmm.read(...order, ...order.slice(0, 50))
    const trace = handler.stopRecording()
    expect([...trace.pages]).toEqual(order)
    expect(trace).toMatchObject({ pageSize: 4096, memoryBytes: 300 * 4096 })
    expect([...trace.timesUs]).toEqual([...trace.timesUs].sort((a, b) => a - b))
  })

  test('the recording ends when the caller says so, and serving goes on', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(5, 6)
    expect([...handler.stopRecording().pages]).toEqual([5, 6])
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect([...handler.stopRecording().pages]).toEqual([5, 6])
  })

  test('a recording cannot be taken before a VM connects', async () => {
    const handler = await serveScene(await scene({ pages: 64 }), { record: true })
    expect(() => handler.stopRecording()).toThrow(expect.objectContaining({ code: 'ERR_CLOSED' }))
  })

  test('a session that does not record has no trace to take', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { record: false })
    expect(() => handler.stopRecording()).toThrow(TypeError)
    await s.vmm.handshake(s.socketPath)
    await handler.connected
    expect(() => handler.stopRecording()).toThrow(TypeError)
  })
})

describe('with a working set', () => {
  test('the guest finds its pages there', async () => {
    const s = await scene({ pages: 2048, regions: 2, order: 'desc' })
    const order = scrambled(2048).slice(0, 900)
    const workingSet = await recordedSet(s, order)
    const handler = await serveScene(s, { workingSet })
    await s.vmm.handshake(s.socketPath)
    const result = await handler.prefetched
    expect(result).toMatchObject({ pageCount: 900, complete: true })
    expect((await s.vmm.present(0, 2048)).count).toBe(900)

    await s.vmm.read(...order)
    expect(handler.stats()).toMatchObject({ faults: 0, lateFaults: 0, residualFaults: 0 })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    await expect.poll(() => pagesIn(handler)).toBe(2048)
    const stats = handler.stats()
    expect(stats).toMatchObject({ residualFaults: stats.faults, prefetched: 900 })
    expectServed(stats, 1148)
  })

  test('only data is read: zero pages and holes are neither stored nor fetched', async () => {
    const folder = await scratchFolder()
    const memoryFile = join(folder, 'memory')
    const kinds = await makeMemoryFile(memoryFile, 512)
    await using vmm = await FakeVmm.start()
    await vmm.map(4096, 512 * 4096)
    const s = { folder, memoryFile, socketPath: join(folder, 's'), pages: 512, vmm }
    const handler = await serveScene(s, { workingSet: await recordedSet(s, scrambled(512)) })
    await vmm.handshake(s.socketPath)
    const data = kinds.filter((kind) => kind === 'data').length
    expect(await handler.prefetched).toMatchObject({ pageCount: 512, bytes: data * 4096 })
    expect(handler.stats()).toMatchObject({ installed: data, zero: 512 - data })
    expect((await vmm.verify(memoryFile)).wrong).toEqual([])
  })

  test('that was never written, the bytes come from the memory file', async () => {
    const s = await scene({ pages: 512 })
    const recorder = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(...scrambled(512).slice(0, 100))
    const workingSet = WorkingSet.fromTraces([recorder.stopRecording()])
    await recorder.close()

    const next = await scene({ pages: 512 })
    const handler = await serveScene(next, { workingSet })
    await next.vmm.handshake(next.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 100, complete: true })
    await next.vmm.read(...scrambled(512).slice(0, 100))
    expect(handler.stats().faults).toBe(0)
    expect((await next.vmm.verify(next.memoryFile)).wrong).toEqual([])
  })

  test('a guest that races its prefetch sees the right bytes', async () => {
    const s = await scene({ pages: 4096, regions: 4, order: 'shuffle' })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, scrambled(4096)) })
    await s.vmm.handshake(s.socketPath)
    expect(await s.vmm.sweep(4, 3, s.memoryFile)).toMatchObject({ wrongCount: 0 })
    await handler.prefetched
    await expect.poll(() => pagesIn(handler)).toBe(4096)
  })

  test('beside it, record notes the faults that it left', async () => {
    const s = await scene({ pages: 64 })
    const workingSet = await recordedSet(s, range(0, 32))
    const handler = await serveScene(s, { workingSet, record: true })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.read(3, 40, 4, 50)
    expect([...handler.stopRecording().pages]).toEqual([40, 50])
  })

  test('an empty one prefetches nothing', async () => {
    const s = await scene({ pages: 64 })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, []) })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 0, complete: true })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })
})

describe('a page that the guest gave back is zero from then on', () => {
  test('right after the handshake', async () => {
    const s = await scene({ pages: 256, holes: false })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, range(0, 256)) })
    await s.vmm.handshake(s.socketPath)
    await s.vmm.remove(100, 50)
    await handler.prefetched
    const expected = { removed: [[100, 149]] as const }
    expect((await s.vmm.verify(s.memoryFile, expected)).wrong).toEqual([])
  })

  test('after the prefetch has brought it', async () => {
    const s = await scene({ pages: 256, holes: false })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, range(0, 256)) })
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    await s.vmm.remove(10, 20)
    const expected = { removed: [[10, 29]] as const }
    expect((await s.vmm.verify(s.memoryFile, expected)).wrong).toEqual([])
    await expectCounts(handler, { removed: 20, zero: 20, installed: 256 })
  })

  test('while the prefetch runs, again and again', async () => {
    const s = await scene({ pages: 8192, holes: false })
    const handler = await serveScene(s, { workingSet: await recordedSet(s, scrambled(8192)) })
    await s.vmm.handshake(s.socketPath)
    const removed: [number, number][] = []
    for (let first = 0; first < 8192; first += 512) {
      await s.vmm.remove(first + 17, 100)
      removed.push([first + 17, first + 116])
    }
    await handler.prefetched
    expect((await s.vmm.verify(s.memoryFile, { removed })).wrong).toEqual([])
  })

  test('also when it was never touched, and it is not in the trace', async () => {
    const s = await scene({ pages: 64, holes: false })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.remove(20, 4)
    const { zero } = await s.vmm.read(19, 20, 21, 24)
    expect(zero).toEqual([false, true, true, false])
    expect([...handler.stopRecording().pages]).toEqual([19, 24])
  })
})

describe('when something goes wrong', () => {
  test('a memory file that is cut short kills the VM rather than give it zeros', async () => {
    const s = await scene({ pages: 256, holes: false })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    await truncate(s.memoryFile, 100 * 4096 + 17)
    await expect(s.vmm.read(100)).rejects.toThrow(/the VMM ended \(SIGKILL\)/)
    await expect(handler.closed).rejects.toMatchObject({
      code: 'ERR_SOURCE_READ',
      check: 'cut-short',
      offset: 100 * 4096,
      path: s.memoryFile,
      message: expect.stringContaining('was killed'),
    })
  })

  test('a memory file that is written to kills the VM at the next page that is read', async () => {
    const s = await scene({ pages: 256, holes: false })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    await utimes(s.memoryFile, 1, 1)
    await expect(s.vmm.read(100)).rejects.toThrow(/the VMM ended \(SIGKILL\)/)
    await expect(handler.closed).rejects.toMatchObject({
      code: 'ERR_SOURCE_READ',
      check: 'changed',
      path: s.memoryFile,
      message: expect.stringContaining('was modified while a VM was served from it'),
    })
  })

  test('a memory file that gets another owner, mode, name or link is served on', async () => {
    const s = await scene({ pages: 256, holes: false })
    await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(1)
    await chmod(s.memoryFile, 0o640)
    await link(s.memoryFile, join(s.folder, 'link'))
    await rename(s.memoryFile, join(s.folder, 'another name'))
    expect((await s.vmm.verify(join(s.folder, 'link'))).wrong).toEqual([])
    await unlink(join(s.folder, 'link'))
  })
})

describe('many VMs', () => {
  const VMS = 64

  test('64 restores at once finish with the right bytes on a handful of threads', async () => {
    const folder = await scratchFolder()
    const memoryFile = join(folder, 'memory')
    const pages = 1024
    await makeMemoryFile(memoryFile, pages)
    const workingSet = await recordedSet(
      { folder, memoryFile, pages },
      scrambled(pages).slice(0, 700),
    )
    const restores = Array.from({ length: VMS }, async (_, i) => {
      const socketPath = join(folder, `${i}.sock`)
      const handler = await serve({
        socketPath,
        snapshot: { memoryFile },
        workingSet,
        connectTimeoutMs: 0,
      })
      await using vmm = await FakeVmm.start()
      await vmm.map(4096, pages * 4096)
      await vmm.handshake(socketPath)
      const sweep = await vmm.sweep(2, i, memoryFile)
      const prefetched = await handler.prefetched
      const during = await threads()
      await vmm.exit(0)
      const result = await handler.closed
      return { sweep, prefetched, during, result }
    })
    for (const { sweep, prefetched, during, result } of await Promise.all(restores)) {
      expect(sweep).toMatchObject({ wrongCount: 0 })
      expect(prefetched.complete).toBe(true)
      expect(result.state).toBe('vm-exited')
      expect(result.stats.installed + result.stats.zero).toBe(pages)
      // Some 14 on two cores, and others in the place of those that wait for a lock of the kernel.
      expect(during).toBeLessThan(VMS / 2)
    }
  }, 120_000)

  async function threads(): Promise<number> {
    let count = 0
    for (const task of await readdir('/proc/self/task')) {
      const name = await readFile(`/proc/self/task/${task}/comm`, 'utf8').catch(() => '')
      if (name.startsWith('reap-')) count += 1
    }
    return count
  }
})

test('from the handshake to the last page, no JavaScript', async () => {
  const s = await scene({ pages: 2048 })
  const handler = await serveScene(s, { workingSet: await recordedSet(s, scrambled(1024)) })
  const handshake = s.vmm.handshake(s.socketPath)
  const sweep = s.vmm.sweep(2, 1, s.memoryFile)
  // The event loop does not turn before every page is there.
  const clock = new Int32Array(new SharedArrayBuffer(4))
  for (let i = 0; i < 30_000 && pagesIn(handler) < 2048; i++) Atomics.wait(clock, 0, 0, 1)
  expect(pagesIn(handler)).toBe(2048)
  await handshake
  expect(await sweep).toMatchObject({ wrongCount: 0 })
})
