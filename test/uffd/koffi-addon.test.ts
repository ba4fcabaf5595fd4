import { randomBytes } from 'node:crypto'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import koffi from 'koffi'
import { describe, expect, onTestFinished, test } from 'vitest'
import { type FaultHandler, type ServeOptions, serve, WorkingSet } from '../../src/index.js'
import {
  AnonymousMemory,
  KoffiUffd,
  pageSize,
  sendUffd,
  UFFD_FEATURE_EVENT_REMOVE,
} from '../support/koffi-uffd.js'

const { EEXIST } = koffi.os.errno as Record<string, number>
const noUffd = KoffiUffd.unavailable()
const zeros = Buffer.alloc(pageSize)

/** A memory file with holes; a guest of it has its pages in two regions. */
const lowPages = 48
const pages = 64
const holes = [5, 60]

interface Snapshot {
  readonly directory: string
  readonly memoryFile: string
  /** The bytes of a page, zeros for a hole. */
  page(page: number): Buffer
}

async function makeSnapshot(): Promise<Snapshot> {
  const directory = await mkdtemp(join(tmpdir(), 'koffi-uffd-'))
  onTestFinished(() => rm(directory, { recursive: true }))
  const memoryFile = join(directory, 'memory')
  const bytes = randomBytes(pages * pageSize)
  for (const hole of holes) bytes.fill(0, hole * pageSize, (hole + 1) * pageSize)
  const file = await open(memoryFile, 'wx', 0o600)
  await file.truncate(bytes.length)
  for (let page = 0; page < pages; page++) {
    if (!holes.includes(page)) await file.write(bytes, page * pageSize, pageSize, page * pageSize)
  }
  await file.close()
  return {
    directory,
    memoryFile,
    page: (page) => bytes.subarray(page * pageSize, (page + 1) * pageSize),
  }
}

/** A VMM in this process: two guest memory regions, pages numbered as in the memory file. */
class Guest {
  readonly uffd = KoffiUffd.open()
  readonly low = AnonymousMemory.map(lowPages)
  readonly high = AnonymousMemory.map(pages - lowPages)

  constructor() {
    // Unregistering lets go of who waits even while the addon holds the descriptor too, and
    // reading lets a discard end.
    onTestFinished(async () => {
      for (const { address, size } of [this.low, this.high]) this.uffd.unregister(address, size)
      this.uffd.readEvents()
      await Promise.all([this.low.unmap(), this.high.unmap()])
      this.uffd.close()
    })
    this.uffd.api(UFFD_FEATURE_EVENT_REMOVE)
    for (const { address, size } of [this.low, this.high]) this.uffd.register(address, size)
  }

  at = (page: number) => this.#find(page, (memory, index) => memory.at(index))
  read = (page: number) => this.#find(page, (memory, index) => memory.read(index))
  discard = (page: number) => this.#find(page, (memory, index) => memory.discard(index))
  resident = () => [...this.low.resident(), ...this.high.resident().map((at) => at + lowPages)]

  connect(socketPath: string): void {
    const regions = [
      { memory: this.low, offset: 0 },
      { memory: this.high, offset: this.low.size },
    ]
    onTestFinished(sendUffd(socketPath, this.uffd, regions))
  }

  /** Waits until so many faults are there to be read. */
  async queued(faults: number): Promise<void> {
    await expect.poll(() => this.uffd.waiters().unread).toBe(faults)
  }

  #find<T>(page: number, use: (memory: AnonymousMemory, index: number) => T): T {
    return page < lowPages ? use(this.low, page) : use(this.high, page - lowPages)
  }
}

/** The addon, listening. This process is the VMM, so the addon may not kill it. */
async function listen(
  snapshot: Snapshot,
  options: Partial<ServeOptions> = {},
): Promise<{ handler: FaultHandler; socketPath: string }> {
  const socketPath = join(snapshot.directory, 'uffd.sock')
  const { memoryFile } = snapshot
  const handler = await serve({ socketPath, snapshot: { memoryFile }, vm: 'leave', ...options })
  onTestFinished(async () => {
    await handler.close({ vm: 'leave' }).catch(() => {})
  })
  return { handler, socketPath }
}

async function restore(snapshot: Snapshot, options: Partial<ServeOptions> = {}) {
  const { handler, socketPath } = await listen(snapshot, options)
  const guest = new Guest()
  guest.connect(socketPath)
  await handler.connected
  return { guest, handler }
}

/** The rules of a fault handler once more, for the faults that are queued. Returns the counts. */
function serveQueued(guest: Guest, snapshot: Snapshot) {
  const counts = { faults: 0, installed: 0, zero: 0, present: 0 }
  for (const message of guest.uffd.readEvents()) {
    if (message.event !== 'pagefault') throw new Error(`unexpected ${message.event}`)
    counts.faults++
    const { address } = message
    const page = Array.from({ length: pages }, (_, i) => i).find((i) => guest.at(i) === address)!
    const zero = holes.includes(page)
    const { copied, errno } = zero
      ? guest.uffd.zeropage(address)
      : guest.uffd.copy(address, snapshot.page(page))
    if (copied === pageSize) {
      counts[zero ? 'zero' : 'installed']++
    } else {
      expect({ copied, errno }).toEqual({ copied: -EEXIST!, errno: EEXIST })
      counts.present++
      guest.uffd.wake(address)
    }
  }
  return counts
}

/**
 * The counters as if every thread had asked once for each page. Here the kernel may wake a thread
 * of the pool for the sake of a lock while it waits for its page: it asks again then, and that
 * fault finds the page there.
 */
function askedOnce(handler: FaultHandler) {
  const { faults, present, bytesRead, ...others } = handler.stats()
  const again = { faults: faults - present, bytesRead: bytesRead - present * pageSize }
  return { ...others, ...again }
}

/** Threads that wait for a page before anybody serves; `present` is a page that is there by then. */
interface Situation {
  readonly what: string
  readonly touched: readonly number[]
  readonly present?: number
}

const situations: Situation[] = [
  { what: 'a page of the memory file', touched: [3] },
  { what: 'a hole of the memory file, in the second region', touched: [60] },
  { what: 'two threads on one page', touched: [3, 3] },
  { what: 'a page that is there, with a thread that nobody woke', touched: [3], present: 3 },
]

async function bring(guest: Guest, { touched, present }: Situation): Promise<Promise<Buffer>[]> {
  const touches = touched.map(guest.read)
  await guest.queued(touches.length)
  if (present !== undefined) {
    guest.uffd.copy(guest.at(present), Buffer.alloc(pageSize, 'present'), { wake: false })
  }
  return touches
}

describe.skipIf(noUffd)(noUffd ?? 'the addon, seen by a client over koffi', () => {
  test.for(situations.map((it) => [it.what, it] as const))(
    'serves as the client does: %s',
    async ([, situation]) => {
      const snapshot = await makeSnapshot()
      const ours = new Guest()
      const ourTouches = await bring(ours, situation)
      const { faults, present, ...counts } = serveQueued(ours, snapshot)

      const { handler, socketPath } = await listen(snapshot)
      const theirs = new Guest()
      const theirTouches = await bring(theirs, situation)
      theirs.connect(socketPath)

      const bytes = Buffer.concat(await Promise.all(ourTouches))
      expect(Buffer.concat(await Promise.all(theirTouches)).equals(bytes)).toBe(true)
      const expected = { ...counts, faults: faults - present, removed: 0, deferred: 0 }
      await expect.poll(() => askedOnce(handler)).toMatchObject(expected)
      expect(theirs.resident()).toEqual(ours.resident())
      expect(theirs.uffd.waiters()).toEqual({ unread: 0, total: 0 })
    },
  )

  test('a fault that is read ahead of the REMOVE of its page gets zeros', async () => {
    const snapshot = await makeSnapshot()
    const { handler, socketPath } = await listen(snapshot)
    const guest = new Guest()
    const discarded = guest.discard(3)
    await guest.uffd.readable()
    const touch = guest.read(3)
    await guest.queued(1)
    guest.connect(socketPath)
    await discarded
    expect((await touch).equals(zeros)).toBe(true)
    // Not the number of faults: a page that is installed after the REMOVE was read, but before the
    // kernel dropped the pages, goes with them and faults again.
    await expect.poll(() => handler.stats()).toMatchObject({ installed: 0, removed: 1 })
  })

  test('every page has its bytes, and the counters and the trace are what the client did', async () => {
    const snapshot = await makeSnapshot()
    const { guest, handler } = await restore(snapshot, { record: true })
    expect(await handler.connected).toMatchObject({
      pid: process.pid,
      pageSize,
      memoryBytes: pages * pageSize,
      regions: [
        { baseAddress: Number(guest.low.address), size: guest.low.size, offset: 0 },
        { baseAddress: Number(guest.high.address), size: guest.high.size, offset: guest.low.size },
      ],
    })
    const order = Array.from({ length: pages }, (_, i) => (i * 29) % pages)
    const wrong: number[] = []
    for (const page of order) {
      if (!(await guest.read(page)).equals(snapshot.page(page))) wrong.push(page)
    }
    expect(wrong).toEqual([])
    await expect
      .poll(() => askedOnce(handler))
      .toMatchObject({
        faults: pages,
        installed: pages - holes.length,
        zero: holes.length,
        removed: 0,
        bytesRead: (pages - holes.length) * pageSize,
      })
    expect([...handler.stopRecording().pages]).toEqual(order)
  })

  test('a page that the guest gives back reads as zeros, touched before or not', async () => {
    const snapshot = await makeSnapshot()
    const { guest, handler } = await restore(snapshot)
    expect((await guest.read(8)).equals(snapshot.page(8))).toBe(true)
    for (const page of [8, 50]) {
      await guest.discard(page)
      expect((await guest.read(page)).equals(zeros)).toBe(true)
    }
    expect((await guest.read(9)).equals(snapshot.page(9))).toBe(true)
    await expect
      .poll(() => askedOnce(handler))
      .toMatchObject({ faults: 4, installed: 2, zero: 2, removed: 2 })
  })

  test('a prefetch brings the pages of the working set before any thread asks', async () => {
    const snapshot = await makeSnapshot()
    const touched = [40, 41, 5, 2, 63, 20]
    const recorded = await restore(snapshot, { record: true })
    for (const page of touched) await recorded.guest.read(page)
    await expect.poll(() => askedOnce(recorded.handler).faults).toBe(touched.length)
    const workingSet = WorkingSet.fromTraces([recorded.handler.stopRecording()])
    await recorded.handler.close({ vm: 'leave' })

    const { guest, handler } = await restore(snapshot, { workingSet })
    expect(await handler.prefetched).toMatchObject({ complete: true })
    expect(guest.resident()).toEqual(expect.arrayContaining(touched))
    for (const page of touched) {
      expect((await guest.read(page)).equals(snapshot.page(page))).toBe(true)
    }
    expect(handler.stats()).toMatchObject({ faults: 0, residualFaults: 0 })
    expect(handler.stats().prefetched).toBe(guest.resident().length)
  })

  test('after detach the guest has every byte and needs nobody', async () => {
    const snapshot = await makeSnapshot()
    const { guest, handler } = await restore(snapshot)
    await guest.read(1)
    await guest.discard(2)
    expect(await handler.detach()).toMatchObject({ state: 'detached' })
    const wrong: number[] = []
    for (let page = 0; page < pages; page++) {
      const expected = page === 2 ? zeros : snapshot.page(page)
      if (!(await guest.read(page)).equals(expected)) wrong.push(page)
    }
    expect(wrong).toEqual([])
    expect(guest.uffd.readEvents()).toEqual([])
  })

  test('once the addon has left the guest, the client serves it on', async () => {
    const snapshot = await makeSnapshot()
    const { guest, handler } = await restore(snapshot)
    await guest.read(1)
    expect(await handler.close({ vm: 'leave' })).toMatchObject({ state: 'vm-left' })
    const touch = guest.read(50)
    await guest.queued(1)
    expect(serveQueued(guest, snapshot)).toMatchObject({ faults: 1, installed: 1 })
    expect((await touch).equals(snapshot.page(50))).toBe(true)
  })
})
