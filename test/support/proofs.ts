import { copyFile, open, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, onTestFinished, vi } from 'vitest'
import { native } from '../../src/binding/addon.js'
import {
  type PrefetchResult,
  type ReapTraceError,
  type ServeEvent,
  type ServeOptions,
  Trace,
  WorkingSet,
  type WorkingSetComparison,
} from '../../src/index.js'
import { isSettled } from '../../src/snapshot/file-stamp.js'
import { setTimes } from './changing-snapshot.js'
import { eventLog, type Scene, scene, serveScene } from './scratch.js'
import { PAGE } from './working-sets.js'

/** The working set of the pairs here: data pages, zeros and holes, in no order of addresses. */
export const PAGES = 256
export const SET_PAGES = 150
export const order = Array.from({ length: SET_PAGES }, (_, i) => (i * 37) % PAGES)
export const others = Array.from({ length: PAGES }, (_, i) => i).filter((i) => !order.includes(i))

export const places = (): WorkingSet => {
  const pages = Uint32Array.from(order)
  const timesUs = pages.map((_, i) => i * 3)
  return WorkingSet.fromTraces([
    new Trace({ pageSize: PAGE, memoryBytes: PAGES * PAGE, pages, timesUs }),
  ])
}

/** A memory file, and a working set that was written from it here. */
export interface Pair extends Scene {
  readonly workingSet: string
}

export async function writtenPair(
  options: { snapshotId?: string | undefined; label?: string } = {},
): Promise<Pair> {
  const s = await scene({ pages: PAGES })
  const workingSet = join(s.folder, 'vm.ws')
  const { snapshotId, label } = options
  const { memoryFile } = s
  await places().write(workingSet, { snapshot: { memoryFile, id: snapshotId }, label })
  return { ...s, workingSet }
}

/** A copy of such a pair, as from another host: nothing is known of it here. */
export async function copiedPair(options: { snapshotId?: string | undefined } = {}): Promise<Pair> {
  const pair = await writtenPair(options)
  const [memoryFile, workingSet] = [join(pair.folder, 'memory-copy'), join(pair.folder, 'copy.ws')]
  await copyFile(pair.memoryFile, memoryFile)
  await copyFile(pair.workingSet, workingSet)
  return { ...pair, memoryFile, workingSet }
}

/** Waits until every later write to the file shows in its times. */
export async function settled(...paths: string[]): Promise<void> {
  for (const path of paths) {
    await expect.poll(async () => isSettled(await stat(path, { bigint: true }))).toBe(true)
  }
}

/** Writes to these pages in place. */
export async function changePages(path: string, pages: readonly number[]): Promise<void> {
  const file = await open(path, 'r+')
  for (const page of pages) await file.write(Buffer.from('changed'), 0, 7, page * PAGE + 99)
  await file.close()
}

/** Overwrites a file in place with the bytes that it has. */
export const writeAsItIs = async (path: string): Promise<void> =>
  writeFile(path, await readFile(path), { flag: 'r+' })

/** Runs `change`, and sets the time of the last write back, to the nanosecond. */
export async function withTimeSetBack(path: string, change: () => Promise<unknown>): Promise<void> {
  const before = await stat(path, { bigint: true })
  await change()
  setTimes(path, before)
  expect((await stat(path, { bigint: true })).mtimeNs).toBe(before.mtimeNs)
}

/**
 * Holds back the ends of comparisons until it is released, and records which were begun and which
 * were stopped.
 */
export function heldComparisons() {
  const addon = native()
  const { compare } = addon
  let release = () => {}
  const released = new Promise<void>((resolve) => {
    release = resolve
  })
  const stopped = vi.fn()
  const spy = vi.spyOn(addon, 'compare').mockImplementation((...args) => {
    const started = compare(...args)
    if (!Array.isArray(started)) return started
    const [stop, end] = started
    const heldStop = () => {
      stopped()
      stop()
    }
    return [heldStop, released.then(() => end)]
  })
  onTestFinished(() => {
    release()
    spy.mockRestore()
  })
  const begun = () => expect.poll(() => spy.mock.calls.length).toBeGreaterThan(0)
  return { release: () => release(), stopped, begun, spy }
}

/** A spy on all later comparisons. */
export function comparisons() {
  const spy = vi.spyOn(native(), 'compare')
  onTestFinished(() => spy.mockRestore())
  return spy
}

export interface Restored {
  readonly prefetched: PrefetchResult
  readonly compared: WorkingSetComparison | undefined
  readonly events: readonly ServeEvent[]
  readonly types: readonly string[]
  readonly warnings: readonly ReapTraceError[]
}

/** Restores a guest, compares all of its memory with the memory file, and waits for the comparison. */
export async function restore(
  { vmm, socketPath, memoryFile, workingSet, pages }: Pair,
  options: Partial<ServeOptions> & { readonly expected?: string } = {},
): Promise<Restored> {
  const { expected = memoryFile, ...served } = options
  await vmm.drop()
  await vmm.map(PAGE, pages * PAGE)
  const log = eventLog()
  const handler = await serveScene(
    { socketPath, memoryFile },
    { workingSet, onEvent: log.onEvent, ...served },
  )
  await vmm.handshake(socketPath)
  const prefetched = await handler.prefetched
  expect(prefetched).toMatchObject({ pageCount: SET_PAGES, complete: true })
  expect((await vmm.verify(expected)).wrong).toEqual([])
  const compared = await handler.compared
  await handler.close({ vm: 'leave' })
  const warnings = log.events.flatMap((event) => (event.type === 'warning' ? [event.error] : []))
  return { prefetched, compared, events: log.events, types: log.types(), warnings }
}

export const proven = (provenBy: PrefetchResult['provenBy']) => ({
  prefetched: { source: 'working-set', provenBy },
  compared: undefined,
  warnings: [],
})

export const unproven = { prefetched: { source: 'memory-file', provenBy: undefined } }

export const identical = {
  pageCount: SET_PAGES,
  identical: true,
  mismatchedPageCount: 0,
  mismatches: [],
  remembered: true,
  rewritten: false,
}
