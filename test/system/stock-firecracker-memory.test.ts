import { execFileSync } from 'node:child_process'
import { copyFile, open } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { keepsTimes } from '../../src/snapshot/file-stamp.js'
import { eventLog, expectCounts, scratchFolder } from '../support/scratch.js'
import {
  filesIn,
  microvm,
  missing,
  recordedSet,
  restored,
  type Snapshot,
} from '../support/stock-firecracker.js'

const MIB_PAGES = 256
const GIVEN = 4 * MIB_PAGES

/** A guest whose balloon is asked for 4 MiB, and which has not heard of it yet. */
async function aboutToInflate(): Promise<Snapshot> {
  const snapshot = filesIn(await scratchFolder())
  const vm = await microvm()
  await vm.boot({ balloon: true })
  await vm.call('PATCH', '/balloon', { amount_mib: GIVEN / MIB_PAGES })
  await vm.snapshot(snapshot)
  await vm.kill()
  return snapshot
}

describe.skipIf(missing)('the balloon of a Firecracker', () => {
  test('pages that it took read as zeros, those that it left as they were', async () => {
    const snapshot = await aboutToInflate()
    const { vm, handler } = await restored(snapshot)
    expect(await vm.ask('b')).toEqual({ requests: 1, figure: GIVEN })
    await expectCounts(handler, { removed: GIVEN })
    expect(await vm.ask('z')).toEqual({ requests: 2, figure: GIVEN })
    await expectCounts(handler, { zero: GIVEN })

    // Taken again after the touch, and given back.
    await vm.call('PATCH', '/balloon', { amount_mib: 0 })
    expect(await vm.ask('b')).toEqual({ requests: 3, figure: 0 })
    await vm.call('PATCH', '/balloon', { amount_mib: 6 })
    expect(await vm.ask('b')).toEqual({ requests: 4, figure: 6 * MIB_PAGES })
    expect(await vm.ask('z')).toEqual({ requests: 5, figure: 6 * MIB_PAGES })
    await vm.ask('l')
  })

  test('it takes pages that a prefetch has brought, or is just bringing', async () => {
    const snapshot = await aboutToInflate()
    // What is recorded are all of the balloon's pages with what they held.
    const workingSet = await recordedSet(snapshot, 'z')
    for (const isHeld of [false, true]) {
      const { vm, handler } = await restored(snapshot, 'bz', { workingSet }, { resume: !isHeld })
      if (isHeld) {
        await handler.prefetched
        await vm.setState('Resumed')
      }
      expect(await vm.answer('b')).toEqual({ requests: 1, figure: GIVEN })
      expect(await vm.answer('z')).toEqual({ requests: 2, figure: GIVEN })
      expect(await handler.prefetched).toMatchObject({ complete: true })
      expect(handler.stats().removed).toBe(GIVEN)
      await vm.kill()
    }
  })
})

async function differingPages(...paths: [string, string]): Promise<number> {
  const files = await Promise.all(paths.map((path) => open(path)))
  const [one, other] = [Buffer.alloc(1 << 20), Buffer.alloc(1 << 20)]
  let found = 0
  for (let at = 0; ; at += one.length) {
    const { bytesRead } = await files[0]!.read(one, 0, one.length, at)
    await files[1]!.read(other, 0, other.length, at)
    for (let page = 0; page < bytesRead; page += 4096) {
      if (one.compare(other, page, page + 4096, page, page + 4096) !== 0) found++
    }
    if (bytesRead < one.length) break
  }
  for (const file of files) await file.close()
  return found
}

describe.skipIf(missing)('a snapshot of a VM that is still restored lazily', () => {
  test('has all its memory, and a diff onto the memory file before is the same', async () => {
    const base = await cachedSnapshot('plain')
    const { vm, handler } = await restored(base, 'sw', {}, { trackDirtyPages: true })
    await vm.answer('s')
    await vm.answer('w')
    const trace = handler.stopRecording()
    expect(trace.pages.length).toBeLessThan(10_000)

    const diff = filesIn(await scratchFolder())
    await copyFile(base.memoryFile, diff.memoryFile)
    await vm.snapshot({ ...diff, type: 'Diff' })
    const full = filesIn(await scratchFolder())
    await vm.snapshot(full)
    execFileSync('cmp', [diff.memoryFile, full.memoryFile])

    // The VM that was snapshotted goes on.
    await vm.setState('Resumed')
    expect(await vm.ask('c')).toEqual({ requests: 5 })
    await vm.kill()
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })

    for (const snapshot of [full, diff]) {
      const next = await restored(snapshot, 'cl')
      expect(await next.vm.answer('c')).toEqual({ requests: 5 })
      expect(await next.vm.answer('l')).toEqual({ requests: 6 })
      await next.vm.kill()
    }
  })

  test('one that is taken during the prefetch is right too', async () => {
    const base = await cachedSnapshot('plain')
    const workingSet = await recordedSet(base, 'l')
    const { vm, handler } = await restored(base, '', { workingSet })
    const snapshot = filesIn(await scratchFolder())
    await vm.snapshot(snapshot)
    expect(await handler.prefetched).toMatchObject({ complete: true })
    await vm.kill()
    // The load itself writes the generation of the VM, and the guest has halted on its stack.
    expect(await differingPages(base.memoryFile, snapshot.memoryFile)).toBeLessThanOrEqual(4)
    const next = await restored(snapshot, 'l')
    expect(await next.vm.answer('l')).toEqual({ requests: 3 })
  })
})

describe.skipIf(missing)('a working set of an earlier snapshot of the same VM', () => {
  /** Two snapshots of one VM, which has put all its links elsewhere between them. */
  async function twoSnapshots(): Promise<[Snapshot, Snapshot]> {
    const folder = await scratchFolder()
    const both = [1, 2].map(
      (i): Snapshot => ({
        vmstate: join(folder, `vmstate-${i}`),
        memoryFile: join(folder, `memory-${i}`),
      }),
    )
    const vm = await microvm()
    await vm.boot()
    await vm.ask('m')
    await vm.snapshot(both[0]!)
    await vm.setState('Resumed')
    await vm.ask('n')
    await vm.ask('m')
    await vm.snapshot(both[1]!)
    await vm.kill()
    return [both[0]!, both[1]!]
  }

  test('the guest is right, the warning has the count, and the next restore warns at once', async () => {
    const [earlier, later] = await twoSnapshots()
    const workingSet = await recordedSet(earlier, 'm')

    const first = eventLog()
    const { vm, handler } = await restored(later, 'm', { workingSet, onEvent: first.onEvent })
    expect(await vm.answer('m')).toEqual({ requests: 4 })
    expect(await handler.prefetched).toMatchObject({ complete: true, source: 'memory-file' })
    const { mismatchedPageCount } = (await handler.compared)!
    // All of the chain, and a few pages of the guest's own.
    expect(mismatchedPageCount).toBeGreaterThanOrEqual(7680)
    const warning = {
      type: 'warning',
      atMs: expect.any(Number),
      error: expect.objectContaining({
        code: 'ERR_SNAPSHOT_MISMATCH',
        message: expect.stringContaining(` ${mismatchedPageCount} pages `),
      }),
    }
    expect(first.events).toContainEqual(warning)
    await vm.ask('l')
    await vm.kill()

    if (!(await keepsTimes(later.memoryFile))) return
    const second = eventLog()
    const next = await restored(later, 'm', { workingSet, onEvent: second.onEvent })
    expect(second.types()[0]).toBe('warning')
    expect(second.events[0]).toEqual(warning)
    expect(await next.vm.answer('m')).toEqual({ requests: 4 })
  })
})
