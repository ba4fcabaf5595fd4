import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { KvmGuest, kvmMissing, writeKvmTrace } from '../../native/guest/driver/kvm-guest.mjs'
import { native } from '../../src/binding/addon.js'
import { Trace, WorkingSet } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { borrowHugePages } from '../support/huge-page-pool.js'
import {
  eventLog,
  expectCounts,
  type Scene,
  scene,
  scratchFolder,
  serveScene,
} from '../support/scratch.js'

const HUGE = 2097152
/** What everything is counted in. */
const SMALL_PAGES = HUGE / 4096
const PAGES = 16

const lacking = await borrowHugePages(2 * PAGES, PAGES)
const skipped = lacking !== undefined
if (skipped) console.log(`skipped: needs ${lacking}`)

async function writtenSet(s: Scene, trace: Trace): Promise<string> {
  const path = join(s.folder, 'set')
  await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile: s.memoryFile } })
  return path
}

describe.skipIf(skipped)('a guest on pages of 2 MiB', () => {
  test('is served on demand', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE, regions: 2, order: 'desc' })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    expect(await handler.connected).toMatchObject({ pageSize: HUGE, memoryBytes: PAGES * HUGE })
    expect(await s.vmm.sweep(3, 5, s.memoryFile, { write: true })).toMatchObject({ wrongCount: 0 })
    await expectCounts(handler, { installed: PAGES * SMALL_PAGES, zero: 0 })
  })

  test('is recorded and prefetched in whole pages', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE })
    const recorder = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(7, 3, 12)
    const trace = recorder.stopRecording()
    expect([...trace.pages]).toEqual([7, 3, 12])
    expect(trace.pageSize).toBe(HUGE)
    await recorder.close()

    const next = await scene({ pages: PAGES, pageSize: HUGE })
    const workingSet = await writtenSet(s, trace)
    const handler = await serveScene(next, { workingSet, onBadWorkingSet: 'fail' })
    await next.vmm.handshake(next.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 3 * SMALL_PAGES, complete: true })
    await next.vmm.read(7, 3, 12)
    expect(handler.stats().faults).toBe(0)
    expect((await next.vmm.verify(next.memoryFile)).wrong).toEqual([])
  })

  test('finds all pages of its set but those that are held out', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE })
    const pages = Uint32Array.of(7, 3, 12)
    const trace = new Trace({ pageSize: HUGE, memoryBytes: PAGES * HUGE, pages, timesUs: pages })
    const workingSet = await writtenSet(s, trace)
    const heldOutPages = Uint32Array.of(12, 7, 5, 3 * SMALL_PAGES)
    const handler = await serveScene(s, { workingSet, heldOutPages, record: true })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: SMALL_PAGES, complete: true })
    await s.vmm.read(7, 3, 12)
    expect([...handler.stopRecording().pages]).toEqual([7, 12])
    await expectCounts(handler, { residualFaults: 2, prefetched: SMALL_PAGES })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })

  test('gets the bytes of the memory file, and no set is compared for it', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE })
    const pages = Uint32Array.of(7, 3, 12)
    const trace = new Trace({ pageSize: HUGE, memoryBytes: PAGES * HUGE, pages, timesUs: pages })
    const workingSet = join(s.folder, 'copy')
    await copyFile(await writtenSet(s, trace), workingSet)
    const compare = vi.spyOn(native(), 'compare')
    onTestFinished(() => compare.mockRestore())
    const handler = await serveScene(s, { workingSet, onStaleWorkingSet: 'fail' })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({
      pageCount: 3 * SMALL_PAGES,
      source: 'memory-file',
      provenBy: undefined,
    })
    expect(await handler.compared).toBeUndefined()
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect(compare).not.toHaveBeenCalled()
  })

  test('is prefetched by a set that was recorded on 4 KiB pages', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE })
    const pages = Uint32Array.of(5 * 512 + 3, 2 * 512, 5 * 512 + 9)
    const trace = new Trace({
      pageSize: 4096,
      memoryBytes: PAGES * HUGE,
      pages,
      timesUs: Uint32Array.of(1, 2, 3),
    })
    const handler = await serveScene(s, { workingSet: await writtenSet(s, trace) })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 2 * SMALL_PAGES, complete: true })
    expect((await s.vmm.present(0, PAGES)).runs).toEqual([
      [2, 1],
      [5, 1],
    ])
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })

  test('gets zeros from a page that it gave back, before and after a prefetch', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE, holes: false })
    const pages = Uint32Array.from({ length: PAGES }, (_, i) => i)
    const trace = new Trace({ pageSize: HUGE, memoryBytes: PAGES * HUGE, pages, timesUs: pages })
    const handler = await serveScene(s, { workingSet: await writtenSet(s, trace) })
    await s.vmm.handshake(s.socketPath)
    await s.vmm.remove(9, 2)
    await handler.prefetched
    await s.vmm.remove(4, 1)
    const expected = { removed: [4, [9, 10]] as const }
    expect((await s.vmm.verify(s.memoryFile, expected)).wrong).toEqual([])
  })

  test('is counted in pages of 4 KiB: its set, its prefetch and every counter of pages', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE, holes: false })
    const pages = Uint32Array.of(7, 3, 12)
    const trace = new Trace({ pageSize: HUGE, memoryBytes: PAGES * HUGE, pages, timesUs: pages })
    const workingSet = await WorkingSet.read(await writtenSet(s, trace))
    expect(workingSet.pageCount).toBe(3 * SMALL_PAGES)
    const log = eventLog()
    const handler = await serveScene(s, { workingSet, onEvent: log.onEvent })
    await s.vmm.handshake(s.socketPath)
    expect((await handler.prefetched).pageCount).toBe(workingSet.pageCount)
    await s.vmm.read(7, 0, 1)
    await s.vmm.remove(5, 2)
    const stats = {
      faults: 2,
      residualFaults: 2,
      prefetched: 3 * SMALL_PAGES,
      installed: 5 * SMALL_PAGES,
      installedAhead: 0,
      removed: 2 * SMALL_PAGES,
      bytesRead: 5 * HUGE,
    }
    await expectCounts(handler, stats)
    expect((await handler.close()).stats).toMatchObject(stats)
    const installed = log.events.find(({ type }) => type === 'prefetched')
    expect(installed).toMatchObject({ pageCount: workingSet.pageCount, extentCount: 3 })
  })

  test('can be detached', async () => {
    const s = await scene({ pages: PAGES, pageSize: HUGE })
    const handler = await serveScene(s)
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(2)
    await handler.detach()
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })

  test('may be a VM of KVM, with two vCPUs', async ({ skip }) => {
    const missing = kvmMissing()
    skip(missing !== undefined, `needs KVM: ${missing}`)
    const folder = await scratchFolder()
    const [memoryFile, socketPath] = [join(folder, 'memory'), join(folder, 'uffd.sock')]
    await makeMemoryFile(memoryFile, (PAGES * HUGE) / 4096)
    const trace = join(folder, 'trace')
    // The first vCPU reads and writes; the second gives pages back, and looks.
    const touches = [
      ...[1, 7, 0, 4, 2].map((page) => ({ page, write: page % 2 === 0 })),
      { page: 12, giveBack: 2 },
      ...[13, 12].map((page) => ({ page, word: 0n })),
      ...[11, 14].map((page) => ({ page })),
    ]
    writeKvmTrace(trace, memoryFile, touches, { pageSize: HUGE })
    const handler = await serveScene({ socketPath, memoryFile })
    const paths = { memoryFile, trace, socketPath }
    const guest = new KvmGuest({ ...paths, pageSize: HUGE, vcpus: 2, deal: 'chunks', verify: true })
    onTestFinished(async () => void (await guest.kill()))
    await guest.exited
    expect(guest.error).toBeUndefined()
    expect(await guest.event('verified')).toMatchObject({ pages: 9, wrong: 0 })
    await handler.closed
    expect(handler.stats()).toMatchObject({ faults: 9, removed: 2 * SMALL_PAGES })
  })
})

test('a set recorded on 2 MiB pages serves a guest on 4 KiB pages', async () => {
  const s = await scene({ pages: 2048 })
  const trace = new Trace({
    pageSize: HUGE,
    memoryBytes: 2048 * 4096,
    pages: Uint32Array.of(2, 0),
    timesUs: Uint32Array.of(1, 2),
  })
  const handler = await serveScene(s, { workingSet: await writtenSet(s, trace) })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 1024, complete: true })
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
})
