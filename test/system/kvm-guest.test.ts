import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { constants } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import {
  KvmGuest,
  type KvmOptions,
  kvmMissing,
  type Touch,
  writeKvmTrace,
} from '../../native/guest/driver/kvm-guest.mjs'
import { Trace, WorkingSet } from '../../src/index.js'
import { Cli, checkBuild, serveWords } from '../support/cli-process.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { scratchFolder, serveScene } from '../support/scratch.js'
import { checkTrace } from '../support/trace-events.js'

const PAGES = 1024

const missing = kvmMissing()
if (missing) console.log(`skipped: needs KVM: ${missing}`)

const range = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i)

/** 0 … n-1, far from its neighbours: 797 is prime. */
const scattered = (n: number) => range(0, n).map((i) => (i * 797) % n)

/** Every third page is written. */
const touches = (pages: readonly number[]): Touch[] =>
  pages.map((page, i) => ({ page, write: i % 3 === 0 }))

/** A memory file, and VMs that are restored from it. */
async function snapshot(pages = PAGES) {
  const folder = await scratchFolder()
  const memoryFile = join(folder, 'memory')
  await makeMemoryFile(memoryFile, pages)
  let serial = 0
  return {
    memoryFile,
    socketPath: join(folder, 'uffd.sock'),
    /** Starts a VM that replays these touches, and compares whole pages when it is done. */
    start(trace: readonly (Touch | number)[], options: Partial<KvmOptions> = {}): KvmGuest {
      const path = join(folder, `trace-${serial++}`)
      writeKvmTrace(path, memoryFile, trace)
      const guest = new KvmGuest({ memoryFile, trace: path, verify: true, ...options })
      onTestFinished(async () => void (await guest.kill()))
      return guest
    },
    async workingSet(order: readonly number[]): Promise<string> {
      const path = join(folder, 'set')
      const trace = new Trace({
        pageSize: 4096,
        memoryBytes: pages * 4096,
        pages: Uint32Array.from(order),
        timesUs: Uint32Array.from(order.keys()),
      })
      await WorkingSet.fromTraces([trace]).write(path, { snapshot: { memoryFile } })
      return path
    },
  }
}

/** Waits for the end of a VM in which every byte was right. */
async function finished(guest: KvmGuest, entries: number, pages = entries): Promise<void> {
  await guest.exited
  expect(guest.error).toBeUndefined()
  expect(await guest.event('done')).toMatchObject({ entries, wrong: 0 })
  expect(await guest.event('verified')).toMatchObject({ pages, wrong: 0 })
  expect(await guest.exited).toEqual({ code: 0, signal: null })
}

const digest = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex')

/** Faults of a process that nobody has read yet. */
function pendingFaults(pid: number): number {
  const fd = readdirSync(`/proc/${pid}/fd`).find((name) =>
    readlinkSync(`/proc/${pid}/fd/${name}`).includes('userfaultfd'),
  )
  const info = readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'utf8')
  return Number(/pending:\s+(\d+)/.exec(info)?.[1])
}

describe.skipIf(process.arch !== 'x64')('a process that replays a trace without KVM', () => {
  test.each([1, 3])('is served on %i threads, with faults of user mode', async (vcpus) => {
    const s = await snapshot()
    const handler = await serveScene(s)
    const options = { ...s, vcpus, threads: true, userModeOnly: true }
    await finished(s.start(touches(scattered(PAGES)), options), PAGES)
    await handler.closed
    const { faults, installed, zero } = handler.stats()
    expect({ faults, pages: installed + zero }).toEqual({ faults: PAGES, pages: PAGES })
  })

  test('reads zeros where it gave memory back, and notices a wrong word', async () => {
    const s = await snapshot()
    await serveScene(s)
    const guest = s.start(
      [9, { page: 9, giveBack: 1 }, { page: 9, word: 0n }, { page: 5, word: 1n }],
      {
        ...s,
        threads: true,
      },
    )
    await guest.exited
    expect(await guest.event('done')).toMatchObject({ entries: 4, wrong: 1 })
    expect(guest.error?.error).toContain('entry 3')
  })
})

describe.skipIf(missing)('a VM of KVM', () => {
  test('replays a trace on a private mapping of the memory file', async () => {
    const s = await snapshot()
    const before = digest(s.memoryFile)
    const guest = s.start(touches(scattered(PAGES)))
    await finished(guest, PAGES)
    expect(guest.events.map(({ event }) => event)).toEqual([
      'ready',
      'mapped',
      'running',
      'done',
      'verified',
    ])
    const times = guest.events.map(({ us }) => us)
    expect(times).toEqual([...times].sort((a, b) => a! - b!))
    expect(digest(s.memoryFile)).toBe(before)
  })

  test.each([
    ['read', false],
    ['written', true],
  ])('says which word is wrong where one is %s', async (_, write) => {
    const s = await snapshot()
    const guest = s.start([3, 4, { page: 5, write, word: 0x5eedn }, 6])
    expect(await guest.exited).toEqual({ code: 1, signal: null })
    expect(await guest.event('done')).toMatchObject({ entries: 4, wrong: 1 })
    expect(guest.error?.error).toMatch(/^at 0x5[0-9a-f]{3} \(entry 2\) .* 0x0{12}5eed$/)
  })

  test('notices a wrong byte that is in no word of the trace', async () => {
    const s = await snapshot()
    await serveScene(s)
    const guest = s.start([3, 4, 5], { ...s, pause: ['done'] })
    expect(await guest.event('done')).toMatchObject({ wrong: 0 })
    const bytes = readFileSync(s.memoryFile)
    bytes[4 * 4096 + 4095]! ^= 1
    writeFileSync(s.memoryFile, bytes)
    guest.go()
    expect(await guest.event('verified')).toMatchObject({ pages: 3, wrong: 1 })
    expect(await guest.exited).toEqual({ code: 1, signal: null })
    expect(guest.error?.error).toContain('page 4 ')
  })

  test.each([
    ['of another kind', (trace: Buffer) => void trace.write('REAPWSET'), /is no trace/],
    ['with an entry too few', (trace: Buffer) => void trace.writeUInt8(3, 16), /contradicts/],
    ['of a page past the memory', (trace: Buffer) => void trace.writeUInt32LE(9, 44), /entry 1/],
    ['with a flag that nobody knows', (trace: Buffer) => void trace.writeUInt8(4, 24), /entry 0/],
  ])('refuses a trace %s', async (_, damage, reason) => {
    const s = await snapshot()
    const trace = `${s.memoryFile}.trace`
    writeKvmTrace(trace, s.memoryFile, [0, 1])
    const bytes = readFileSync(trace)
    damage(bytes)
    writeFileSync(trace, bytes)
    const guest = s.start([], { trace })
    expect(await guest.exited).toEqual({ code: 1, signal: null })
    expect(guest.error?.error).toMatch(reason)
  })

  test('is served on demand', async () => {
    const s = await snapshot()
    const handler = await serveScene(s)
    await finished(s.start(touches(scattered(PAGES)), s), PAGES)
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
    const stats = handler.stats()
    expect(stats).toMatchObject({ faults: PAGES, present: 0 })
    expect(stats.installed + stats.zero).toBe(PAGES)
  })

  test('faults in the kernel, on the way of KVM', async () => {
    const s = await snapshot()
    await serveScene(s)
    const guest = s.start([7], { ...s, userModeOnly: true })
    expect(await guest.exited).toEqual({ code: 1, signal: null })
    expect(guest.error).toMatchObject({
      errno: -constants.errno.EFAULT,
      error: expect.stringContaining('cannot run a vCPU'),
    })
  })

  test('is recorded page by page, in the order of its touches', async () => {
    const s = await snapshot()
    const handler = await serveScene(s)
    const order = scattered(PAGES).slice(0, 400)
    const trace = touches(order)
    await finished(s.start([...trace, ...trace], s), 800, 400)
    expect([...handler.stopRecording().pages]).toEqual(order)
  })

  test('finds its working set there', async () => {
    const s = await snapshot()
    const order = scattered(PAGES).slice(0, 600)
    const handler = await serveScene(s, { workingSet: await s.workingSet(order) })
    const guest = s.start(touches(order), { ...s, pause: ['connected'] })
    expect(await handler.prefetched).toMatchObject({ pageCount: 600, complete: true })
    guest.go()
    await finished(guest, 600)
    await handler.closed
    expect(handler.stats()).toMatchObject({ faults: 0, residualFaults: 0, prefetched: 600 })
  })

  test('may race its prefetch, and leave some pages to demand', async () => {
    const s = await snapshot()
    const order = scattered(PAGES)
    const workingSet = await s.workingSet(order.slice(0, 700))
    const handler = await serveScene(s, { workingSet })
    await finished(s.start(touches(order), { ...s, vcpus: 2 }), PAGES)
    await handler.closed
    expect(handler.stats()).toMatchObject({ residualFaults: PAGES - 700 })
  })

  test('is restored by the command line, whose trace names the faults', async () => {
    await checkBuild()
    const s = await snapshot()
    const order = scattered(PAGES)
    const trace = join(await scratchFolder(), 'restore.json')
    const set = ['--working-set', await s.workingSet(order.slice(0, 700))]
    const cli = new Cli(['restore', ...serveWords(s), ...set, '--trace', trace])
    await cli.event('listening')
    await finished(s.start(touches(order), { ...s, vcpus: 2 }), PAGES)
    expect(await cli.ended).toMatchObject({ code: 0 })
    const { timeline } = await checkTrace(trace)
    const residual = timeline!.faults.filter((fault) => fault.class === 'residual')
    const pages = residual.map(({ offset }) => offset / 4096)
    expect(pages.toSorted((a, b) => a - b)).toEqual(order.slice(700).toSorted((a, b) => a - b))
  })

  describe.each([2, 4])('with %i vCPUs', (vcpus) => {
    test.each(['turns', 'chunks'] as const)('shares a trace in %s', async (deal) => {
      const s = await snapshot()
      const handler = await serveScene(s)
      // One entry more than can be shared evenly.
      const order = scattered(PAGES).slice(0, 8 * 61 + 1)
      const guest = s.start(touches(order), { ...s, vcpus, deal, pause: ['done'] })
      await guest.event('done')
      const { pages } = handler.stopRecording()
      expect([...pages].sort((a, b) => a - b)).toEqual([...order].sort((a, b) => a - b))
      guest.go()
      await finished(guest, order.length)
    })

    test('may touch the same pages at the same time', async () => {
      const s = await snapshot()
      const handler = await serveScene(s)
      const guest = s.start(touches(scattered(PAGES)), { ...s, vcpus, deal: 'all' })
      await finished(guest, vcpus * PAGES, PAGES)
      await handler.closed
      const stats = handler.stats()
      expect(stats.installed + stats.zero).toBe(PAGES)
      expect(stats.faults).toBeGreaterThanOrEqual(PAGES)
    })
  })

  describe('that gives memory back', () => {
    const trace: Touch[] = [
      ...touches(range(0, 64)),
      { page: 8, giveBack: 16 },
      ...range(8, 16).map((page) => ({ page, word: 0n, write: page % 2 === 0 })),
      ...touches(range(24, 40)),
    ]

    test('reads zeros there on a mapping of the file', async () => {
      const s = await snapshot()
      await finished(s.start(trace), trace.length, 64)
    })

    test('reads zeros there behind a fault handler', async () => {
      const s = await snapshot()
      const handler = await serveScene(s)
      await finished(s.start(trace, s), trace.length, 64)
      await handler.closed
      expect(handler.stats()).toMatchObject({ removed: 16 })
    })

    test('while it is prefetched and another vCPU runs, reads zeros there', async () => {
      const s = await snapshot(2 * PAGES)
      const handler = await serveScene(s, { workingSet: await s.workingSet(range(0, 2 * PAGES)) })
      // One vCPU reads the even half of the pages; the other gives the odd half back, and looks.
      const reader = range(0, PAGES).map((i): Touch => ({ page: 2 * i }))
      const balloon = range(0, PAGES / 2)
        .map((i) => PAGES / 2 - 1 - i)
        .flatMap((i): Touch[] => [
          { page: 4 * i + 1, giveBack: 1 },
          { page: 4 * i + 1, word: 0n },
        ])
      const guest = s.start([...reader, ...balloon], { ...s, vcpus: 2, deal: 'chunks' })
      await finished(guest, 2 * PAGES, PAGES + PAGES / 2)
      await handler.closed
      expect(handler.stats()).toMatchObject({ removed: PAGES / 2 })
    })
  })

  test('that is killed while it runs ends its session', async () => {
    const s = await snapshot()
    const handler = await serveScene(s)
    // Far more work than a test has time for.
    const guest = s.start(touches(scattered(PAGES)), { ...s, spins: 2 ** 40, vcpus: 2 })
    await guest.event('running')
    expect(await guest.kill()).toMatchObject({ signal: 'SIGKILL' })
    expect(await handler.closed).toMatchObject({ state: 'vm-exited' })
  })

  test('ends by a signal while its vCPUs wait for pages that never come', async () => {
    const s = await snapshot()
    const mute = createServer().listen(s.socketPath)
    onTestFinished(() => void mute.close())
    const connected = new Promise((resolve) => mute.once('connection', resolve))
    const guest = s.start(touches(scattered(PAGES)), { ...s, vcpus: 2 })
    await connected
    await guest.event('running')
    await expect.poll(() => pendingFaults(guest.pid!)).toBe(2)
    expect(await guest.kill('SIGTERM')).toEqual({ code: null, signal: 'SIGTERM' })
  })
})
