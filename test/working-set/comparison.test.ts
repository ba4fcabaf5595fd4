import { execFile } from 'node:child_process'
import { readFileSync, statfsSync, unlinkSync } from 'node:fs'
import { copyFile, mkdtemp, rm, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { beforeAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import {
  planRestore,
  prefetchPageCache,
  restore as restorePlanned,
  WorkingSet,
} from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import { checkBuild } from '../support/cli-process.js'
import { evict, residentPages } from '../support/page-cache.js'
import {
  changePages,
  comparisons,
  copiedPair,
  heldComparisons,
  identical,
  order,
  type Pair,
  places,
  proven,
  restore,
  settled,
  unproven,
  writtenPair,
} from '../support/proofs.js'
import { eventLog, serveScene } from '../support/scratch.js'
import { makeMemory, newPath, setOf } from '../support/working-sets.js'

const terminated = fileURLToPath(
  new URL('../support/fixtures/worker-compares.mjs', import.meta.url),
)

/** A restore up to the end of its prefetch. */
async function prefetched(pair: Pair, options: { signal?: AbortSignal } = {}) {
  const { workingSet, socketPath, vmm } = pair
  const log = eventLog()
  const handler = await serveScene(pair, { workingSet, onEvent: log.onEvent, ...options })
  await vmm.handshake(socketPath)
  expect(await handler.prefetched).toMatchObject(unproven.prefetched)
  return { handler, log }
}

describe('`compared`', () => {
  test('is nothing where the session ends before its prefetch', async () => {
    const pair = await copiedPair()
    const { workingSet } = pair
    const spy = comparisons()
    const closed = await serveScene(pair, { workingSet })
    await closed.close()
    expect(await closed.compared).toBeUndefined()

    const late = await serveScene(pair, { workingSet, connectTimeoutMs: 1 })
    await expect(late.closed).rejects.toMatchObject({ code: 'ERR_HANDSHAKE_TIMEOUT' })
    expect(await late.compared).toBeUndefined()

    const controller = new AbortController()
    const aborted = await serveScene(pair, { workingSet, signal: controller.signal })
    controller.abort(new Error('not needed'))
    await expect(aborted.closed).rejects.toThrow('not needed')
    expect(await aborted.compared).toBeUndefined()
    expect(spy).not.toHaveBeenCalled()
  })

  test('comes also after the end of a session whose prefetch was over', async () => {
    const pair = await copiedPair()
    const held = heldComparisons()
    const { handler, log } = await prefetched(pair)
    await held.begun()
    expect((await handler.close({ vm: 'leave' })).state).toBe('vm-left')
    held.release()
    expect(await handler.compared).toEqual(identical)
    expect(log.types()).toEqual(['listening', 'connected', 'prefetched', 'closed', 'compared'])
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })

  test('is nothing where the signal ends the comparison, which is no failure of it', async () => {
    const pair = await copiedPair()
    const held = heldComparisons()
    const controller = new AbortController()
    const { handler, log } = await prefetched(pair, { signal: controller.signal })
    await held.begun()
    controller.abort(new Error('not needed'))
    await expect(handler.closed).rejects.toThrow('not needed')
    expect(held.stopped).toHaveBeenCalledOnce()
    held.release()
    expect(await handler.compared).toBeUndefined()
    expect(log.types()).toEqual(['listening', 'connected', 'prefetched', 'closed'])
  })

  test('of verify() ends with what its progress throws, or with its signal', async () => {
    const pair = await copiedPair()
    const set = await WorkingSet.read(pair.workingSet)
    const error = new Error('mine')
    const onProgress = () => {
      throw error
    }
    await expect(set.verify({ memoryFile: pair.memoryFile }, { onProgress })).rejects.toBe(error)
    const controller = new AbortController()
    const spy = comparisons()
    const verified = set.verify({ memoryFile: pair.memoryFile }, { signal: controller.signal })
    controller.abort(error)
    await expect(verified).rejects.toBe(error)
    expect(spy).not.toHaveBeenCalled()
  })

  test('of one set waits for that of another, and ends with its signal alone', async () => {
    const [first, second] = [await copiedPair(), await copiedPair()]
    const held = heldComparisons()
    const one = await prefetched(first)
    await held.begun()
    const controller = new AbortController()
    const other = await prefetched(second, { signal: controller.signal })
    controller.abort()
    await expect(other.handler.closed).rejects.toThrow()
    held.release()
    expect(await one.handler.compared).toEqual(identical)
    expect(await other.handler.compared).toBeUndefined()
    expect(held.spy).toHaveBeenCalledOnce()
  })

  test('is nothing where the memory file is gone, and a warning says so', async () => {
    const pair = await copiedPair()
    const { workingSet, memoryFile, socketPath, vmm } = pair
    const copy = join(pair.folder, 'kept')
    await copyFile(memoryFile, copy)
    const log = eventLog()
    const handler = await serveScene(pair, {
      workingSet,
      onEvent: (event) => {
        log.onEvent(event)
        if (event.type === 'prefetched') unlinkSync(memoryFile)
      },
    })
    await vmm.handshake(socketPath)
    expect(await handler.compared).toBeUndefined()
    expect(log.types()).toEqual(['listening', 'connected', 'prefetched', 'warning'])
    const error = { code: 'ERR_SOURCE_READ', syscall: 'stat', path: memoryFile }
    expect(log.events[3]).toMatchObject({ error })
    expect((await vmm.verify(copy)).wrong).toEqual([])
  })
})

describe('a working set that was read before its file changed', () => {
  const changes: [name: string, change: (pair: Pair) => Promise<unknown>][] = [
    ['touched', ({ workingSet }) => utimes(workingSet, new Date(), new Date())],
    [
      'written anew',
      ({ workingSet, memoryFile }) => places().write(workingSet, { snapshot: { memoryFile } }),
    ],
    [
      'replaced by one of other places',
      async ({ workingSet, memoryFile }) =>
        setOf(memoryFile, [1, 2, 3]).write(workingSet, { snapshot: { memoryFile } }),
    ],
  ]
  test.each(changes)('gives the order alone, and a warning: %s', async (_, change) => {
    const pair = await writtenPair()
    const workingSet = await WorkingSet.read(pair.workingSet)
    expect(await restore(pair, { workingSet })).toMatchObject(proven('written'))
    await change(pair)
    const restored = await restore(pair, { workingSet })
    expect(restored).toMatchObject({
      ...unproven,
      warnings: [{ code: 'ERR_WORKING_SET_INVALID', check: 'changed', path: pair.workingSet }],
    })
    expect(restored.compared).toBeUndefined()
  })
})

describe('a memory file on tmpfs', () => {
  async function onTmpfs(): Promise<Pair> {
    const pair = await writtenPair()
    const folder = await mkdtemp('/dev/shm/reap-test-')
    onTestFinished(() => rm(folder, { recursive: true }))
    const memoryFile = join(folder, 'memory')
    await copyFile(pair.memoryFile, memoryFile)
    return { ...pair, memoryFile }
  }
  const isTmpfs = () => {
    try {
      return statfsSync('/dev/shm').type === 0x01021994
    } catch {
      return false
    }
  }

  test('proves nothing, and is compared once', async ({ skip }) => {
    skip(!isTmpfs(), 'needs a tmpfs at /dev/shm')
    const pair = await onTmpfs()
    await places().write(pair.workingSet, { snapshot: { memoryFile: pair.memoryFile } })
    const spy = comparisons()
    for (let i = 0; i < 3; i++) {
      const restored = await restore(pair)
      expect(restored).toMatchObject({ ...unproven, warnings: [] })
      expect(restored.compared).toEqual({ ...identical, remembered: false })
    }
    expect(spy).toHaveBeenCalledOnce()
  })

  test("proves nothing with onStaleWorkingSet 'fail' either", async ({ skip }) => {
    skip(!isTmpfs(), 'needs a tmpfs at /dev/shm')
    const pair = await onTmpfs()
    await settled(pair.memoryFile, pair.workingSet)
    const spy = comparisons()
    for (let i = 0; i < 2; i++) {
      expect(await restore(pair, { onStaleWorkingSet: 'fail' })).toMatchObject({
        ...unproven,
        compared: { ...identical, remembered: false },
      })
    }
    expect(spy).toHaveBeenCalledOnce()
  })

  test('gives its own bytes when it has changed', async ({ skip }) => {
    skip(!isTmpfs(), 'needs a tmpfs at /dev/shm')
    const pair = await onTmpfs()
    await restore(pair)
    await changePages(pair.memoryFile, order.slice(0, 4))
    const spy = comparisons()
    for (let i = 0; i < 2; i++) {
      expect(await restore(pair)).toMatchObject({
        ...unproven,
        compared: { mismatchedPageCount: 4, remembered: false },
        warnings: [{ check: 'stale' }],
      })
    }
    expect(spy).toHaveBeenCalledOnce()
  })

  test('is restored from by name', async ({ skip }) => {
    skip(!isTmpfs(), 'needs a tmpfs at /dev/shm')
    const pair = await onTmpfs()
    const snapshot = { memoryFile: pair.memoryFile, id: 'vm-7' }
    await places().write(pair.workingSet, { snapshot })
    expect(await restore(pair, { snapshot })).toMatchObject(proven('snapshot-id'))
  })
})

describe('a stale working set in the page cache', () => {
  uncalibrated()

  async function stale() {
    const memoryFile = makeMemory(1024)
    const workingSet = newPath('vm.ws')
    const pages = [700, 3, 4, 5, 90]
    await setOf(memoryFile, pages).write(workingSet, { snapshot: { memoryFile } })
    await changePages(memoryFile, [3, 700])
    await evict(memoryFile, workingSet)
    const set = readFileSync(workingSet)
    const spy = comparisons()
    const expectUntouched = () => {
      expect(residentPages(memoryFile)).toEqual([...pages].sort((a, b) => a - b))
      expect(readFileSync(workingSet).equals(set)).toBe(true)
      expect(spy).not.toHaveBeenCalled()
    }
    return { memoryFile, workingSet, expectUntouched }
  }

  test('brings in the pages of the memory file itself', async () => {
    const { memoryFile, workingSet, expectUntouched } = await stale()
    const onEvent = vi.fn()
    const result = await prefetchPageCache({ snapshot: { memoryFile }, workingSet, onEvent })
    expect(result).toMatchObject({ pageCount: 5, complete: true })
    expect(onEvent).not.toHaveBeenCalled()
    expectUntouched()
  })

  test('is no hindrance to a restore that goes that way', async () => {
    const { memoryFile, workingSet, expectUntouched } = await stale()
    const log = eventLog()
    const plan = await planRestore({ snapshot: { memoryFile }, workingSet, backend: 'page-cache' })
    const prepared = await restorePlanned(plan, { onStaleWorkingSet: 'fail', onEvent: log.onEvent })
    onTestFinished(() => prepared.close())
    expect(await prepared.prefetched).toMatchObject({ pageCount: 5, complete: true })
    expect(log.events).toEqual([])
    expectUntouched()
  })
})

describe('a worker thread', () => {
  beforeAll(checkBuild)

  test('may be terminated while it compares, and so may the process', async () => {
    const memoryFile = makeMemory(8192)
    const workingSet = newPath('vm.ws')
    await setOf(
      memoryFile,
      Array.from({ length: 8192 }, (_, i) => i),
    ).write(workingSet, { snapshot: { memoryFile } })
    // Rejects when the process was ended by a signal, as a fault in the addon does.
    await promisify(execFile)(process.execPath, [terminated, memoryFile, workingSet, '8'])
  })
})
