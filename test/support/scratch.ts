import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished } from 'vitest'
import {
  type FaultHandler,
  type FaultStats,
  type ServeEvent,
  type ServeOptions,
  serve,
  Trace,
  WorkingSet,
} from '../../src/index.js'
import { FakeVmm, makeMemoryFile } from './fake-vmm.js'

/** A folder that is removed when the test ends. */
export async function scratchFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'reap-test-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

export async function fakeVmm(
  options: { uid?: number; env?: NodeJS.ProcessEnv } = {},
): Promise<FakeVmm> {
  const vmm = await FakeVmm.start(options)
  onTestFinished(() => vmm.kill())
  return vmm
}

export interface Scene {
  readonly folder: string
  readonly socketPath: string
  readonly memoryFile: string
  readonly pages: number
  readonly vmm: FakeVmm
}

/** A VMM with mapped memory and the memory file for it, before any handler. */
export async function scene({
  pages = 512,
  pageSize = 4096,
  regions = 1,
  holes = true,
  ...map
}: {
  pages?: number
  pageSize?: 4096 | 2097152
  regions?: number
  holes?: boolean
  order?: 'asc' | 'desc' | 'shuffle'
  gap?: number
} = {}): Promise<Scene> {
  const folder = await scratchFolder()
  const memoryFile = join(folder, 'memory')
  await makeMemoryFile(memoryFile, (pages * pageSize) / 4096, { holes })
  const vmm = await fakeVmm()
  const each = Math.floor(pages / regions)
  const sizes = Array.from(
    { length: regions },
    (_, i) => (i === regions - 1 ? pages - each * (regions - 1) : each) * pageSize,
  )
  await vmm.map(pageSize, sizes, map)
  return { folder, socketPath: join(folder, 'uffd.sock'), memoryFile, pages, vmm }
}

export const range = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => first + i)

/** 0 … n-1 in a fixed random order. */
export function scrambled(n: number): number[] {
  const order = range(0, n)
  let state = 12345
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0
    const j = state % (i + 1)
    ;[order[i], order[j]] = [order[j]!, order[i]!]
  }
  return order
}

/** A written working set of these 4 KiB pages, in this order. */
export async function recordedSet(
  { folder, memoryFile, pages }: Pick<Scene, 'folder' | 'memoryFile' | 'pages'>,
  order: readonly number[],
): Promise<string> {
  const trace = new Trace({
    pageSize: 4096,
    memoryBytes: pages * 4096,
    pages: Uint32Array.from(order),
    timesUs: Uint32Array.from(order.keys()),
  })
  const path = join(folder, 'set')
  await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile } })
  return path
}

/**
 * `serve()` for a scene, which records if there is no working set. The session is closed when the
 * test ends.
 */
export async function serveScene(
  { socketPath, memoryFile }: Pick<Scene, 'socketPath' | 'memoryFile'>,
  options: Partial<ServeOptions> = {},
): Promise<FaultHandler> {
  const handler = await serve({
    socketPath,
    snapshot: { memoryFile },
    connectTimeoutMs: 30_000,
    record: options.workingSet === undefined,
    ...options,
  })
  onTestFinished(async () => void (await handler.close()))
  return handler
}

/**
 * Waits until these counters have these values, since a guest continues before its page is counted.
 * Counters never fall: one that is too high stays wrong.
 */
export async function expectCounts(
  handler: FaultHandler,
  counts: Partial<FaultStats>,
): Promise<void> {
  await expect.poll(() => handler.stats()).toMatchObject(counts)
}

/**
 * Checks that this many pages were installed by residual faults, or ahead of them. A guest that
 * continues may fault on a page that is just being installed ahead: that page counts as both, and
 * its fault finds it present.
 */
export function expectServed(
  {
    residualFaults,
    installedAhead,
    present,
  }: Pick<FaultStats, 'residualFaults' | 'installedAhead' | 'present'>,
  pages: number,
): void {
  expect(residualFaults + installedAhead).toBeGreaterThanOrEqual(pages)
  expect(residualFaults + installedAhead).toBeLessThanOrEqual(pages + present)
}

/** Collects events, and waits for one. */
export function eventLog(): {
  readonly events: ServeEvent[]
  readonly onEvent: (event: ServeEvent) => void
  types(): string[]
} {
  const events: ServeEvent[] = []
  return { events, onEvent: (event) => events.push(event), types: () => events.map((e) => e.type) }
}

export const isRoot = process.getuid?.() === 0

/**
 * Checks that the prefetch installed these pages, except those that the guest asked for meanwhile.
 * A page may count as both.
 */
export function expectBrought(
  { prefetched, lateFaults }: Pick<FaultStats, 'prefetched' | 'lateFaults'>,
  pages: number,
): void {
  expect(prefetched).toBeLessThanOrEqual(pages)
  expect(prefetched + lateFaults).toBeGreaterThanOrEqual(pages)
}
