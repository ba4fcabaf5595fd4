import { existsSync, readdirSync, statSync } from 'node:fs'
import { chmod, copyFile, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { native } from '../../src/binding/addon.js'
import { WorkingSet } from '../../src/index.js'
import {
  changePages,
  comparisons,
  copiedPair,
  heldComparisons,
  identical,
  order,
  others,
  type Pair,
  places,
  proven,
  restore,
  SET_PAGES,
  settled,
  unproven,
  withTimeSetBack,
  writtenPair,
} from '../support/proofs.js'
import { eventLog, fakeVmm, type Scene, scene, serveScene } from '../support/scratch.js'
import { readSet } from '../support/second-reader.js'
import { diskTrace, makeDisk, PAGE, pageIn } from '../support/working-sets.js'

/** Three pages of data, one of zeros and one of a hole. */
const changed = [3, 50, 51, 90, 149].map((place) => order[place]!)

const mismatchesIn = (pages: readonly number[]) =>
  pages.map((page) => ({ page, offset: page * PAGE }))

/** The pair's snapshot with this name. */
const named = ({ memoryFile }: Pair, id?: string) => ({ snapshot: { memoryFile, id } })

const staleWarning = (pair: Pair, pages: number) => ({
  code: 'ERR_SNAPSHOT_MISMATCH',
  check: 'stale',
  path: pair.workingSet,
  message: expect.stringContaining(pages === 1 ? '1 page of it differs' : `${pages} pages of it`),
})

describe('a working set whose pages have changed in the memory file', () => {
  test('gives the order alone, is reported with its count, and at once from then on', async () => {
    const pair = await writtenPair()
    expect(await restore(pair)).toMatchObject(proven('written'))
    await changePages(pair.memoryFile, [...changed, ...others.slice(0, 20)])
    const spy = comparisons()
    const first = await restore(pair)
    expect(first).toMatchObject({ ...unproven, warnings: [staleWarning(pair, 5)] })
    const { mismatches, ...compared } = first.compared!
    expect(compared).toEqual({
      pageCount: SET_PAGES,
      identical: false,
      mismatchedPageCount: 5,
      remembered: true,
      rewritten: false,
    })
    expect(mismatches).toHaveLength(5)
    expect(mismatches).toEqual(expect.arrayContaining(mismatchesIn(changed)))
    expect(first.types).toEqual([
      ...['listening', 'connected', 'prefetched', 'warning', 'compared', 'closed'],
    ])

    const second = await restore(pair)
    expect(second).toMatchObject({ ...unproven, warnings: [staleWarning(pair, 5)] })
    expect(second.compared).toBeUndefined()
    expect(second.types).toEqual(['warning', 'listening', 'connected', 'prefetched', 'closed'])
    expect(spy).toHaveBeenCalledOnce()
  })

  test.each([1, 40])('is reported with %i pages, and up to 16 are listed', async (count) => {
    const pair = await copiedPair()
    await changePages(pair.memoryFile, order.slice(0, count))
    const { compared, warnings } = await restore(pair)
    expect(compared).toMatchObject({ mismatchedPageCount: count })
    expect(compared!.mismatches).toHaveLength(Math.min(count, 16))
    expect(warnings).toMatchObject([staleWarning(pair, count)])
  })

  test('is proven where only other pages have changed', async () => {
    const pair = await writtenPair()
    await changePages(pair.memoryFile, others)
    expect(await restore(pair)).toMatchObject({ ...unproven, compared: identical, warnings: [] })
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })

  test('is proven again when the old bytes are back', async () => {
    const pair = await writtenPair()
    const bytes = await readFile(pair.memoryFile)
    await changePages(pair.memoryFile, changed)
    expect(await restore(pair)).toMatchObject({ compared: { mismatchedPageCount: 5 } })
    await writeFile(pair.memoryFile, bytes, { flag: 'r+' })
    expect(await restore(pair)).toMatchObject({ ...unproven, compared: identical, warnings: [] })
    expect(await restore(pair)).toMatchObject(proven('compared'))
  })
})

describe('a change that neither size nor time of writing shows', () => {
  test.each<[name: string, change: (path: string) => Promise<void>]>([
    ['in place', (path) => changePages(path, changed)],
    [
      'by another file',
      async (path) => {
        await copyFile(path, `${path}.other`)
        await changePages(`${path}.other`, changed)
        await rename(`${path}.other`, path)
      },
    ],
  ])('of the memory file, %s, makes a set stale', async (_, change) => {
    const pair = await writtenPair()
    expect(await restore(pair)).toMatchObject(proven('written'))
    await withTimeSetBack(pair.memoryFile, () => change(pair.memoryFile))
    expect(await restore(pair)).toMatchObject({
      ...unproven,
      compared: { mismatchedPageCount: 5 },
      warnings: [staleWarning(pair, 5)],
    })
  })

  test.each<[name: string, change: (from: string, to: string) => Promise<void>]>([
    ['in place', async (from, to) => writeFile(to, await readFile(from), { flag: 'r+' })],
    ['by another file', rename],
  ])('of the set, %s, makes it stale', async (_, change) => {
    const pair = await writtenPair()
    const memoryFile = join(pair.folder, 'other memory')
    await copyFile(pair.memoryFile, memoryFile)
    await changePages(memoryFile, changed)
    const other = join(pair.folder, 'other.ws')
    await places().write(other, { snapshot: { memoryFile } })
    expect(await restore(pair)).toMatchObject(proven('written'))
    await withTimeSetBack(pair.workingSet, () => change(other, pair.workingSet))
    expect(await restore(pair)).toMatchObject({
      ...unproven,
      compared: { mismatchedPageCount: 5 },
      warnings: [staleWarning(pair, 5)],
    })
  })
})

describe("onStaleWorkingSet: 'fail'", () => {
  /** A refusal before anything listens. */
  async function expectRefusal(pair: Pair, options: object, expected: object): Promise<void> {
    const { workingSet } = pair
    const open = vi.spyOn(native(), 'open')
    onTestFinished(() => open.mockRestore())
    const log = eventLog()
    const served = serveScene(pair, { workingSet, onEvent: log.onEvent, ...options })
    await expect(served).rejects.toMatchObject(expected)
    expect(open).not.toHaveBeenCalled()
    expect(existsSync(pair.socketPath)).toBe(false)
    expect(log.events).toEqual([])
  }

  test.each([
    ['said', { onStaleWorkingSet: 'fail' }],
    ["the default of onBadWorkingSet 'fail'", { onBadWorkingSet: 'fail' }],
  ] as const)('%s, refuses a stale set after one comparison', async (_, options) => {
    const pair = await copiedPair()
    await changePages(pair.memoryFile, changed)
    await settled(pair.memoryFile, pair.workingSet)
    const spy = comparisons()
    for (let i = 0; i < 2; i++) await expectRefusal(pair, options, staleWarning(pair, 5))
    expect(spy).toHaveBeenCalledOnce()
  })

  test('serves a set that is not proven, and proves it before that', async () => {
    const pair = await copiedPair()
    await settled(pair.memoryFile, pair.workingSet)
    const spy = comparisons()
    for (let i = 0; i < 2; i++) {
      expect(await restore(pair, { onStaleWorkingSet: 'fail' })).toMatchObject(proven('compared'))
    }
    expect(spy).toHaveBeenCalledOnce()
  })

  test("is not meant by onBadWorkingSet 'fail' with onStaleWorkingSet 'warn'", async () => {
    const pair = await copiedPair()
    await changePages(pair.memoryFile, changed)
    const options = { onBadWorkingSet: 'fail', onStaleWorkingSet: 'warn' } as const
    for (let i = 0; i < 2; i++) {
      expect(await restore(pair, options)).toMatchObject({
        ...unproven,
        warnings: [staleWarning(pair, 5)],
      })
    }
  })

  test.each([
    ['the memory file', 'memoryFile'],
    ['the set', 'workingSet'],
  ] as const)(
    'does not wait where %s was written a tick ago, and serves it unproven',
    async (...row) => {
      const pair = await copiedPair()
      const { workingSet, vmm, socketPath, memoryFile } = pair
      await settled(memoryFile, workingSet)
      const { isSettled } = native()
      const clock = vi.spyOn(native(), 'isSettled')
      const { ctimeNs } = statSync(pair[row[1]], { bigint: true })
      clock.mockImplementation((changedAt, age) => changedAt < ctimeNs && isSettled(changedAt, age))
      const handler = await serveScene(pair, { workingSet, onStaleWorkingSet: 'fail' })
      const asked = clock.mock.calls.length
      clock.mockRestore()
      // Who waits asks again and again.
      expect(asked).toBeLessThan(10)
      await vmm.handshake(socketPath)
      expect(await handler.prefetched).toMatchObject(unproven.prefetched)
      expect((await vmm.verify(memoryFile)).wrong).toEqual([])
      expect(await handler.compared).toEqual(identical)
      await handler.close({ vm: 'leave' })
      expect(await restore(pair)).toMatchObject(proven('compared'))
    },
  )

  test('refuses a set of another snapshot by its name', async () => {
    const pair = await writtenPair({ snapshotId: 'vm-7' })
    const spy = comparisons()
    await expectRefusal(
      pair,
      { onStaleWorkingSet: 'fail', ...named(pair, 'vm-8') },
      { code: 'ERR_SNAPSHOT_MISMATCH', check: 'snapshot-id', path: pair.workingSet },
    )
    expect(spy).not.toHaveBeenCalled()
  })
})

describe("onStaleWorkingSet: 'rewrite'", () => {
  /** A set with all that a file may have. */
  async function fullPair(snapshotId?: string): Promise<Pair> {
    const s: Scene = await scene({ pages: 256 })
    const { memoryFile } = s
    const disk = diskTrace(2 ** 20, [
      [9, 5],
      [100, 50],
    ])
    const image = makeDisk(2 ** 20)
    const merged = WorkingSet.fromTraces([places().order, places().order], {
      disks: [[disk, disk]],
    })
    const workingSet = join(s.folder, 'vm.ws')
    await merged.write(workingSet, {
      snapshot: { memoryFile, diskImages: [image], id: snapshotId },
      label: 'a label',
    })
    return { ...s, workingSet }
  }

  /** The set at the path has these places, and the memory file's bytes. */
  async function expectRewritten(pair: Pair, before: ReturnType<typeof readSet>): Promise<void> {
    const after = readSet(pair.workingSet)
    expect(after.id).not.toEqual(before.id)
    const { runs, touches, disks, memoryBytes, pageSize } = before
    expect(after).toMatchObject({ runs, touches, disks, memoryBytes, pageSize })
    expect(after.manifest.label).toBe('a label')
    const memory = await readFile(pair.memoryFile)
    expect([...after.pages.keys()].sort()).toEqual([...order].sort())
    for (const [page, bytes] of after.pages) {
      expect(pageIn(memory, page).equals(bytes), `page ${page}`).toBe(true)
    }
    expect(statSync(pair.workingSet).mode & 0o777).toBe(0o600)
  }

  test('gives the file the bytes of the memory file, and proves it for the next restore', async () => {
    const pair = await fullPair()
    await chmod(pair.workingSet, 0o644)
    await changePages(pair.memoryFile, [...changed, others[0]!])
    const [before, inode] = [readSet(pair.workingSet), (await stat(pair.workingSet)).ino]
    const options = { onStaleWorkingSet: 'rewrite' } as const
    const restored = await restore(pair, options)
    expect(restored).toMatchObject({
      ...unproven,
      compared: { identical: false, mismatchedPageCount: 5, rewritten: true },
      warnings: [staleWarning(pair, 5)],
    })
    await expectRewritten(pair, before)
    expect((await stat(pair.workingSet)).ino).not.toBe(inode)
    const spy = comparisons()
    expect(await restore(pair, options)).toMatchObject(proven('written'))
    expect(spy).not.toHaveBeenCalled()
  })

  test('rewrites a set that is known to be stale without another comparison', async () => {
    const pair = await fullPair()
    await changePages(pair.memoryFile, changed)
    await restore(pair)
    const before = readSet(pair.workingSet)
    const spy = comparisons()
    const restored = await restore(pair, { onStaleWorkingSet: 'rewrite' })
    expect(restored.types[0]).toBe('warning')
    expect(restored.warnings).toHaveLength(1)
    expect(restored.compared).toMatchObject({ mismatchedPageCount: 5, rewritten: true })
    expect(spy).not.toHaveBeenCalled()
    await expectRewritten(pair, before)
    expect(await restore(pair)).toMatchObject(proven('written'))
  })

  test('gives a set of another snapshot the name of this one', async () => {
    const pair = await fullPair('vm-7')
    await changePages(pair.memoryFile, changed)
    const before = readSet(pair.workingSet)
    const options = { onStaleWorkingSet: 'rewrite', ...named(pair, 'vm-8') } as const
    const restored = await restore(pair, options)
    expect(restored).toMatchObject({
      ...unproven,
      compared: { rewritten: true },
      warnings: [{ check: 'snapshot-id' }],
    })
    await expectRewritten(pair, before)
    expect(readSet(pair.workingSet).manifest.snapshotId).toBe('vm-8')
    expect(await restore(pair, options)).toMatchObject(proven('snapshot-id'))
    expect(await restore(pair)).toMatchObject(proven('written'))
  })

  test('by several restores at a time leaves one good set', async () => {
    const pair = await fullPair()
    await changePages(pair.memoryFile, changed)
    const before = readSet(pair.workingSet)
    const pairs = await Promise.all(
      [0, 1, 2].map(async (i) => {
        return { ...pair, vmm: await fakeVmm(), socketPath: join(pair.folder, `${i}.sock`) }
      }),
    )
    const options = { onStaleWorkingSet: 'rewrite' } as const
    const restored = await Promise.all(pairs.map((one) => restore(one, options)))
    expect(restored.some(({ compared }) => compared?.rewritten)).toBe(true)
    await expectRewritten(pair, before)
    expect(readdirSync(pair.folder).filter((name) => name.endsWith('.tmp'))).toEqual([])
    // Which of them it is, another may have noted last: that costs a comparison at most.
    expect((await restore(pair)).warnings).toEqual([])
    expect((await restore(pair)).prefetched.source).toBe('working-set')
  })

  test('leaves an identical set as it is', async () => {
    const pair = await copiedPair()
    const bytes = await readFile(pair.workingSet)
    const options = { onStaleWorkingSet: 'rewrite' } as const
    expect((await restore(pair, options)).compared).toEqual(identical)
    expect((await readFile(pair.workingSet)).equals(bytes)).toBe(true)
    expect(await restore(pair, options)).toMatchObject(proven('compared'))
  })

  test('leaves alone what was recorded anew meanwhile', async () => {
    const pair = await copiedPair()
    await changePages(pair.memoryFile, [order[0]!])
    const held = heldComparisons()
    const log = eventLog()
    const { workingSet, vmm, socketPath, memoryFile } = pair
    const options = { workingSet, onStaleWorkingSet: 'rewrite', onEvent: log.onEvent } as const
    const handler = await serveScene(pair, options)
    await vmm.handshake(socketPath)
    await handler.prefetched
    await held.begun()
    await places().write(workingSet, { snapshot: { memoryFile }, label: 'newer' })
    const newer = await readFile(workingSet)
    held.release()
    expect(await handler.compared).toMatchObject({ mismatchedPageCount: 1, rewritten: false })
    expect(log.events).toContainEqual({
      type: 'warning',
      atMs: expect.any(Number),
      error: expect.objectContaining({ code: 'ERR_WORKING_SET_INVALID', check: 'changed' }),
    })
    expect((await readFile(workingSet)).equals(newer)).toBe(true)
  })
})

describe('a name of a snapshot', () => {
  test('that set and restore share proves the set, and nothing is compared', async () => {
    const snapshotId = 'vm-7'
    const spy = comparisons()
    for (const pair of [await writtenPair({ snapshotId }), await copiedPair({ snapshotId })]) {
      expect(await restore(pair, named(pair, snapshotId))).toMatchObject(proven('snapshot-id'))
    }
    expect(spy).not.toHaveBeenCalled()
  })

  test('that is not that of the set makes it stale, also where it was written here', async () => {
    const pair = await writtenPair({ snapshotId: 'vm-7' })
    const spy = comparisons()
    for (let i = 0; i < 2; i++) {
      const restored = await restore(pair, named(pair, 'vm-8'))
      expect(restored).toMatchObject({ ...unproven, warnings: [{ check: 'snapshot-id' }] })
      expect(restored.compared).toBeUndefined()
      expect(restored.types[0]).toBe('warning')
    }
    expect(spy).not.toHaveBeenCalled()
  })

  test.each([
    ['the set has none', undefined, 'vm-7'],
    ['none is given', 'vm-7', undefined],
  ])('changes nothing where %s', async (_, snapshotId, given) => {
    const written = await writtenPair({ snapshotId })
    expect(await restore(written, named(written, given))).toMatchObject(proven('written'))
    const copied = await copiedPair({ snapshotId })
    const options = named(copied, given)
    expect(await restore(copied, options)).toMatchObject({ ...unproven, compared: identical })
    expect(await restore(copied, options)).toMatchObject(proven('compared'))
  })

  test.each(['', 'x'.repeat(1025), 7])('is misused as %j', async (id) => {
    const pair = await writtenPair()
    const options = named(pair, id as string)
    const misuses = [serveScene(pair, options), places().write(pair.workingSet, options)]
    for (const misuse of misuses) {
      await expect(misuse).rejects.toThrow(TypeError)
      await expect(misuse).rejects.toThrow(
        /"id" of the snapshot of .* a string of 1 to 1024 characters/,
      )
    }
  })

  test('may have 1024 characters', async () => {
    const snapshotId = 'é'.repeat(1024)
    const pair = await copiedPair({ snapshotId })
    expect(await restore(pair, named(pair, snapshotId))).toMatchObject(proven('snapshot-id'))
  })
})
