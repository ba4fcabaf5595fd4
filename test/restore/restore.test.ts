import { getEventListeners } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import { evict, residentPages, threadGuest } from '../support/page-cache.js'
import {
  handlerOf,
  onDisk,
  order,
  planAndRestore,
  range,
  restored,
  snapshot,
} from '../support/restoring.js'
import { eventLog, fakeVmm } from '../support/scratch.js'
import { makeDisk, makeMemory, newPath, PAGE } from '../support/working-sets.js'

uncalibrated()

/** What only garbage keeps alive is gone then; twice, as finalizers run between. */
async function collectGarbage() {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  for (let i = 0; i < 2; i++) {
    collect()
    await setImmediate()
  }
}

describe.skipIf(process.arch !== 'x64')('a guest', () => {
  const touches = order.map((page, i) => ({ page, write: i % 3 === 0 }))

  test.each([
    ['page-cache', 'warm'],
    ['page-cache', 'cold'],
    ['uffd', 'warm'],
    ['uffd', 'cold'],
  ] as const)('finds its memory right by %s from a %s page cache', async (backend, state) => {
    const s = await snapshot()
    const guest = threadGuest(s.all.memoryFile, [...touches, 4095], {
      pause: ['ready'],
      userModeOnly: true,
    })
    await guest.event('ready')
    if (state === 'cold') await s.evict()
    const restore = await restored({ ...s.all, backend })
    const { backend_type, backend_path } = restore.memBackend
    guest.go(backend_type === 'File' ? 'file' : `socket ${backend_path}`)
    expect(await guest.event('verified')).toMatchObject({ wrong: 0 })
    expect(await guest.exited).toEqual({ code: 0, signal: null })
    if (backend === 'uffd') {
      expect(await handlerOf(restore).closed).toMatchObject({ state: 'vm-exited' })
      expect(handlerOf(restore).stats().residualFaults).toBe(1)
    } else {
      expect(await restore.prefetched).toMatchObject({ pageCount: 400, complete: true })
    }
  })
})

describe('the disk images', () => {
  test.each(['uffd', 'page-cache'] as const)('are brought in beside %s', async (backend) => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const restore = await restored({ ...s.all, backend })
    expect(await restore.disksPrefetched).toMatchObject({ complete: true })
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
    expect(residentPages(s.all.memoryFile).length > 300).toBe(backend === 'page-cache')
  })

  test('are brought in where only they are missing', async () => {
    const s = await snapshot({ disk: true })
    await evict(...s.all.diskImages!)
    const restore = await restored(s.all)
    expect(restore.backend).toBe('page-cache')
    expect(await restore.prefetched).toMatchObject({ pageCount: 403, complete: true })
    expect(residentPages(s.all.diskImages![0]!)).toEqual(onDisk)
  })

  test.each(['uffd', 'page-cache'] as const)(
    'are left alone by %s where the working set has nothing of them',
    async (backend) => {
      const s = await snapshot()
      await s.evict()
      const image = makeDisk(2 ** 20)
      await evict(image)
      const { events, onEvent } = eventLog()
      const restore = await restored({ ...s.all, diskImages: [image], backend, onEvent })
      await restore.disksPrefetched
      expect(events.filter(({ type }) => type === 'warning')).toEqual([])
      expect(residentPages(image)).toEqual([])
    },
  )

  test.each(['uffd', 'page-cache'] as const)(
    'are a warning beside %s where they are others',
    async (backend) => {
      const s = await snapshot({ disk: true })
      const { events, onEvent } = eventLog()
      const diskImages = [makeDisk(2 ** 21)]
      const restore = await restored({ ...s.all, diskImages, backend, onEvent })
      const error = { code: 'ERR_SNAPSHOT_MISMATCH', path: diskImages[0] }
      expect(await restore.disksPrefetched).toMatchObject({ complete: false })
      expect(events).toContainEqual({
        type: 'warning',
        atMs: expect.any(Number),
        error: expect.objectContaining(error),
      })
    },
  )
})

test('a socket path is absolute for the VMM if a socket address can hold it', async () => {
  const s = await snapshot()
  const before = process.cwd()
  onTestFinished(() => process.chdir(before))
  const folder = join(s.folder, 'f'.repeat(120))
  await mkdir(folder)
  for (const [cwd, path] of [
    [s.folder, join(s.folder, 's')],
    [folder, 's'],
  ] as const) {
    process.chdir(cwd)
    const restore = await restored({ ...s.all, backend: 'uffd', socketPath: 's' })
    expect(restore.memBackend.backend_path).toBe(path)
    await restore.close()
  }
})

test('a VMM in a jail gets the path that it sees', async () => {
  const s = await snapshot()
  const vmmPath = '/in-the-jail'
  for (const [backend, backend_type] of [
    ['uffd', 'Uffd'],
    ['page-cache', 'File'],
  ] as const) {
    const restore = await restored({ ...s.all, backend, vmmPath })
    expect(restore.memBackend).toEqual({ backend_type, backend_path: vmmPath })
  }
})

describe('the end', () => {
  test('of a session that has failed does not reject again', async () => {
    const s = await snapshot()
    const restore = await restored({ ...s.all, backend: 'uffd', connectTimeoutMs: 1 })
    const failure = { code: 'ERR_HANDSHAKE_TIMEOUT' }
    await expect(handlerOf(restore).closed).rejects.toMatchObject(failure)
    await restore.close()
    await restore[Symbol.asyncDispose]()
  })

  test('of a handler ends its VM, and leaves no socket', async () => {
    const s = await snapshot()
    const waiting = await restored({ ...s.all, backend: 'uffd' })
    expect(existsSync(s.all.socketPath)).toBe(true)
    await waiting.close()
    expect(existsSync(s.all.socketPath)).toBe(false)
    expect(await waiting.handler!.closed).toMatchObject({ state: 'closed' })

    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    {
      await using restore = await planAndRestore({ ...s.all, backend: 'uffd' })
      await vmm.handshake(restore.memBackend.backend_path)
      await handlerOf(restore).connected
    }
    expect(await vmm.exited).toMatchObject({ signal: 'SIGKILL' })
    expect(existsSync(s.all.socketPath)).toBe(false)
  })

  test('of a handler can leave its VM', async () => {
    const s = await snapshot()
    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    const restore = await restored({ ...s.all, backend: 'uffd' })
    await vmm.handshake(s.all.socketPath)
    await handlerOf(restore).connected
    await restore.close({ vm: 'leave' })
    expect(await handlerOf(restore).closed).toMatchObject({ state: 'vm-left' })
  })

  test('of a prefetch comes with that of the restore, and again', async () => {
    const s = await snapshot()
    await s.evict()
    const restore = await restored({ ...s.all, backend: 'page-cache' })
    await restore.close()
    expect(await restore.prefetched).toMatchObject({ complete: false })
    await restore.close()
    await restore[Symbol.asyncDispose]()
  })

  test.each(['uffd', 'page-cache'] as const)(
    "of %s lets go of the caller's signal",
    async (backend) => {
      const s = await snapshot()
      const { signal } = new AbortController()
      const restore = await restored({ ...s.all, backend, signal, connectTimeoutMs: 500 })
      // In Node 20, the last listener that was added with a `signal` stays until garbage is collected.
      await collectGarbage()
      await restore.handler?.closed.catch(() => {})
      if (backend === 'page-cache') await restore.prefetched
      await expect.poll(() => getEventListeners(signal, 'abort')).toEqual([])
    },
  )

  test('comes with the signal', async () => {
    const s = await snapshot({ disk: true })
    const reason = new Error('no longer needed')
    const aborted = planAndRestore({ ...s.all, signal: AbortSignal.abort(reason) })
    await expect(aborted).rejects.toBe(reason)
    for (const backend of ['uffd', 'page-cache'] as const) {
      await s.evict()
      const controller = new AbortController()
      const { signal } = controller
      const restore = await restored({ ...s.all, backend, signal })
      controller.abort(reason)
      if (backend === 'uffd') await expect(handlerOf(restore).closed).rejects.toBe(reason)
      else expect(await restore.prefetched).toMatchObject({ complete: false })
      expect(await restore.disksPrefetched).toMatchObject({ complete: false })
      expect(existsSync(s.all.socketPath)).toBe(false)
    }
  })

  test.each(['uffd', 'page-cache'] as const)(
    'of %s comes with the signal for the start until the prefetch is over, and not later',
    async (backend) => {
      const s = await snapshot()
      const reason = new Error('too late')
      const refused = planAndRestore({ ...s.all, backend, startSignal: AbortSignal.abort(reason) })
      await expect(refused).rejects.toBe(reason)

      await s.evict()
      const early = new AbortController()
      const ended = await restored({ ...s.all, backend, startSignal: early.signal })
      early.abort(reason)
      if (backend === 'uffd') await expect(handlerOf(ended).closed).rejects.toBe(reason)
      else expect(await ended.prefetched).toMatchObject({ complete: false })
      expect(existsSync(s.all.socketPath)).toBe(false)

      const late = new AbortController()
      const restore = await restored({ ...s.all, backend, startSignal: late.signal })
      const vmm = await fakeVmm()
      await vmm.map(PAGE, [4096 * PAGE])
      if (backend === 'uffd') await vmm.handshake(s.all.socketPath)
      expect(await restore.prefetched).toMatchObject({ pageCount: 400, complete: true })
      late.abort(reason)
      expect(getEventListeners(late.signal, 'abort')).toEqual([])
      if (backend === 'uffd') expect((await vmm.verify(s.all.memoryFile)).wrong).toEqual([])
    },
  )

  test('on an event that comes before there is a restore leaves the disk images alone', async () => {
    const s = await snapshot({ disk: true })
    await s.evict()
    const caller = new AbortController()
    const restore = await restored({
      ...s.all,
      backend: 'uffd',
      signal: caller.signal,
      onEvent: ({ type }) => type === 'listening' && caller.abort('enough'),
    })
    expect(await restore.disksPrefetched).toMatchObject({ complete: false })
    expect(residentPages(s.all.diskImages![0]!)).toEqual([])
    await expect(handlerOf(restore).closed).rejects.toBe('enough')
  })
})

// On a machine that is busy with something else, the thread may wait for its core.
test('the JavaScript thread goes on meanwhile', { retry: 3 }, async () => {
  const pages = 16384
  const memoryFile = makeMemory(pages)
  const workingSet = newPath('vm.ws')
  const touched = Uint32Array.from(range(0, pages).map((i) => (i * 797) % pages))
  const timesUs = Uint32Array.from(touched.keys())
  const trace = new Trace({ pageSize: PAGE, memoryBytes: pages * PAGE, pages: touched, timesUs })
  await WorkingSet.fromTraces([trace]).write(workingSet, { snapshot: { memoryFile } })
  await evict(memoryFile, workingSet)
  let turns = 0
  let longest = 0
  let last = performance.now()
  const probe = setInterval(() => {
    turns++
    longest = Math.max(longest, performance.now() - last)
    last = performance.now()
  }, 1)
  onTestFinished(() => clearInterval(probe))
  const restore = await restored({ memoryFile, workingSet, backend: 'page-cache' })
  const before = turns
  const result = await restore.prefetched
  expect(result).toMatchObject({ pageCount: pages, complete: true })
  await expect.poll(() => turns).toBeGreaterThan(before)
  // Far less than the reads take on any disk.
  expect(longest).toBeLessThan(1000)
})
