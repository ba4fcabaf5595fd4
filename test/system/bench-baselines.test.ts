import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { open, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/index.js'
import { type Scene, scene } from '../support/scratch.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const binary = join(root, 'build/Release/reap-bench')

interface Line {
  readonly [name: string]: number | string | boolean
}

/** A handler of reap-bench, in a child process. */
class BenchHandler {
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  readonly #child
  readonly #lines: Line[] = []
  #wake: () => void = () => {}

  constructor(words: readonly string[]) {
    const child = spawn(binary, words, { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#child = child
    this.exited = once(child, 'close').then(([code, signal]) => {
      this.#wake()
      return { code, signal }
    })
    createInterface({ input: child.stdout }).on('line', (line) => {
      this.#lines.push(JSON.parse(line))
      this.#wake()
    })
    onTestFinished(async () => {
      child.kill('SIGKILL')
      await this.exited
    })
  }

  /** The event, which may still be to come. */
  async event(name: string): Promise<Line & { us: number }> {
    for (;;) {
      const found = this.#lines.find(({ event }) => event === name)
      if (found) return found as Line & { us: number }
      const { exitCode, signalCode } = this.#child
      if (exitCode !== null || signalCode !== null) throw new Error(`it ended without '${name}'`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** Writes the byte with which one that waits for input begins. */
  sendInput(): void {
    this.#child.stdin.write('\n')
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }
}

function run(...words: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(binary, words, { encoding: 'utf8', timeout: 50_000 })
}

/** Runs of up to five pages with gaps between, the last first, as no recorder would list them. */
function recordedPages(pages: number): number[] {
  return Array.from({ length: pages }, (_, i) => pages - 1 - i).filter(
    (page) => page % 7 < 1 + (page % 5),
  )
}

/** What `reap` takes: the list of pages, and their working-set file. */
async function reapFiles(s: Scene, pages: readonly number[]): Promise<string[]> {
  const list = join(s.folder, 'pages')
  const set = join(s.folder, 'set')
  await writeFile(list, Buffer.from(Uint32Array.from(pages).buffer))
  const files = ['--memory', s.memoryFile, '--pages', list]
  expect(run('reap-pack', ...files, '--output', set)).toMatchObject({ status: 0, stderr: '' })
  return [...files, '--ws', set]
}

async function startReap(s: Scene, pages: readonly number[]) {
  const files = await reapFiles(s, pages)
  const handler = new BenchHandler(['reap', '--socket', s.socketPath, ...files])
  await handler.event('fetched')
  return handler
}

/** Faults of a process that no handler has read. */
async function unreadFaults(pid: number): Promise<number> {
  for (let fd = 0; fd < 64; fd++) {
    const info = await readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8').catch(() => '')
    const pending = /^pending:\s*(\d+)$/m.exec(info)?.[1]
    if (pending !== undefined) return Number(pending)
  }
  throw new Error(`process ${pid} has no userfaultfd`)
}

/** Whether a thread of the process waits in a function of the kernel whose name begins so. */
async function waitsFor(pid: number, name: string): Promise<boolean> {
  const threads = await readdir(`/proc/${pid}/task`)
  const waits = threads.map((id) => readFile(`/proc/${pid}/task/${id}/wchan`, 'utf8'))
  return (await Promise.all(waits)).some((wchan) => wchan.startsWith(name))
}

execFileSync(process.execPath, [join(root, 'scripts/build-native.mjs'), '--quiet', 'reap-bench'])

describe('reap-bench', () => {
  test('reap-pack writes the pages in ascending order and nothing else', async () => {
    const s = await scene({ pages: 300 })
    const pages = [299, 5, 4, 17, 6, 0]
    await reapFiles(s, pages)
    const memory = await readFile(s.memoryFile)
    const ascending = [...pages].sort((a, b) => a - b)
    expect(await readFile(join(s.folder, 'set'))).toEqual(
      Buffer.concat(ascending.map((page) => memory.subarray(page * 4096, (page + 1) * 4096))),
    )
  })

  test('reap has the recorded pages there before the guest runs, and serves all others', async () => {
    const s = await scene({ pages: 2048, regions: 3, order: 'shuffle', gap: 4096 })
    // Regions are of 682 pages; one run goes across the end of the first.
    const pages = [...new Set([...recordedPages(2048), 680, 681, 682, 683])]
    const handler = await startReap(s, pages)
    await s.vmm.handshake(s.socketPath)
    const installed = await handler.event('installed')
    expect(installed).toMatchObject({ pages: pages.length, present: 0 })

    const present = await s.vmm.present(0, 2048)
    const listed = present.runs.flatMap(([first, count]) =>
      Array.from({ length: count }, (_, i) => first + i),
    )
    expect(listed).toEqual([...pages].sort((a, b) => a - b))
    expect(await s.vmm.verify(s.memoryFile)).toMatchObject({ wrongCount: 0, pages: 2048 })

    expect(await s.vmm.exit(0)).toMatchObject({ code: 0 })
    expect(await handler.event('ended')).toMatchObject({
      reason: 'vm-exited',
      faults: 2048 - pages.length,
      installed: 2048 - pages.length,
    })
    expect(await handler.exited).toEqual({ code: 0, signal: null })
    const times = ['listening', 'fetched', 'connected', 'installed', 'ended']
    const us = await Promise.all(times.map(async (name) => (await handler.event(name)).us))
    expect(us).toEqual([...us].sort((a, b) => a - b))
  })

  test('reap takes one call for each contiguous run', async () => {
    const s = await scene({ pages: 256 })
    const handler = await startReap(s, [9, 8, 7, 100, 3, 101, 200])
    await s.vmm.handshake(s.socketPath)
    expect(await handler.event('installed')).toMatchObject({ pages: 7, extents: 4, calls: 4 })
  })

  test('reap reads past the page cache, or through it when asked', async () => {
    const s = await scene({ pages: 64 })
    const files = await reapFiles(s, [1, 2, 3])
    for (const fetch of ['direct', 'cached']) {
      const words = ['reap', '--socket', s.socketPath, ...files, '--fetch', fetch]
      const handler = new BenchHandler(words)
      const { direct, bytes } = await handler.event('fetched')
      expect(bytes).toBe(3 * 4096)
      // Where the file system has no O_DIRECT, both commands say so.
      if (fetch === 'cached') expect(direct).toBe(false)
      else
        expect(direct).toBe(
          run('limit-read', '--file', s.memoryFile).stdout.includes('"direct":true'),
        )
      handler.kill('SIGTERM')
      expect(await handler.exited).toEqual({ code: 0, signal: null })
    }
    const words = ['reap', '--socket', s.socketPath, ...files, '--fetch', 'other']
    expect(run(...words)).toMatchObject({ status: 2, stderr: expect.stringMatching(/--fetch/) })
  })

  test('reap that begins on input reads nothing before, and fails where stdin is closed', async () => {
    const s = await scene({ pages: 64 })
    const words = [
      ...['reap', '--socket', s.socketPath, ...(await reapFiles(s, [1, 2, 3]))],
      ...['--begin', 'on-input'],
    ]
    expect(run(...words)).toMatchObject({ status: 1, stderr: expect.stringMatching(/to begin/) })
    const handler = new BenchHandler(words)
    await handler.event('listening')
    const sentUs = Number(process.hrtime.bigint()) / 1e3
    handler.sendInput()
    const { us, tookUs } = await handler.event('fetched')
    expect(us - Number(tookUs)).toBeGreaterThanOrEqual(sentUs)
    expect(run(...words.slice(0, -1), 'later')).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/--begin/),
    })
  })

  test('spin loops until it is killed', async () => {
    const loop = new BenchHandler(['spin'])
    await loop.event('spinning')
    loop.kill('SIGKILL')
    expect(await loop.exited).toEqual({ code: null, signal: 'SIGKILL' })
  })

  test('reap brings what the working-set file has, not the memory file', async () => {
    const s = await scene({ pages: 64, holes: false })
    const files = await reapFiles(s, [20, 10])
    const set = await open(join(s.folder, 'set'), 'r+')
    await set.write(Buffer.from([0xab]), 0, 1, 4096) // the first byte of page 20
    await set.close()
    const handler = new BenchHandler(['reap', '--socket', s.socketPath, ...files])
    await handler.event('fetched')
    await s.vmm.handshake(s.socketPath)
    await handler.event('installed')
    expect(await s.vmm.verify(s.memoryFile)).toMatchObject({ wrong: [20] })
  })

  test('reap installs every recorded page before it answers a fault that came first', async () => {
    const s = await scene({ pages: 4096 })
    const pages = recordedPages(4096)
    const outside = Array.from({ length: 4096 }, (_, i) => i).find((page) => !pages.includes(page))!
    const handler = await startReap(s, pages)
    // The fault is queued while the handler stands still, so it is there when the VMM is accepted.
    handler.kill('SIGSTOP')
    await s.vmm.handshake(s.socketPath)
    // Goes through the recorded pages, the last installed first, as soon as the fault is answered.
    await s.vmm.bg('guest', `read ${[outside, ...pages].join(' ')}`)
    while ((await unreadFaults(s.vmm.pid)) === 0) await new Promise(setImmediate)
    handler.kill('SIGCONT')
    expect(await s.vmm.wait('guest')).toMatchObject({ done: true, ok: true })
    handler.kill('SIGTERM')
    expect(await handler.event('ended')).toMatchObject({ reason: 'terminated', faults: 1 })
  })

  test('a thread that waits for a recorded page before the install is woken', async () => {
    const s = await scene({ pages: 64 })
    const handler = await startReap(s, [7])
    handler.kill('SIGSTOP')
    await s.vmm.handshake(s.socketPath)
    await s.vmm.bg('guest', 'read 7')
    while ((await unreadFaults(s.vmm.pid)) === 0) await new Promise(setImmediate)
    handler.kill('SIGCONT')
    expect(await s.vmm.wait('guest')).toMatchObject({ done: true, ok: true })
    handler.kill('SIGTERM')
    expect(await handler.event('ended')).toMatchObject({ faults: 1, present: 1 })
  })

  test('pages that the guest gives back read as zero and hang nobody', async () => {
    const s = await scene({ pages: 128, holes: false })
    const handler = await startReap(s, [3, 4, 5])
    await s.vmm.handshake(s.socketPath)
    await s.vmm.read(60)
    await s.vmm.remove(4, 10)
    expect(await s.vmm.verify(s.memoryFile, { removed: [[4, 13]] })).toMatchObject({
      wrongCount: 0,
    })
    handler.kill('SIGTERM')
    expect(await handler.event('ended')).toMatchObject({ removed: 1 })
  })

  test('an install that meets an unread REMOVE goes on after it, without the removed pages', async () => {
    const s = await scene({ pages: 128, holes: false })
    const handler = await startReap(s, [2, 3, 4, 5, 20, 21])
    handler.kill('SIGSTOP')
    await s.vmm.handshake(s.socketPath)
    await s.vmm.bg('guest', 'remove 4 10')
    while (!(await waitsFor(s.vmm.pid, 'userfaultfd_event'))) await new Promise(setImmediate)
    handler.kill('SIGCONT')
    expect(await s.vmm.wait('guest')).toMatchObject({ done: true, ok: true })
    expect(await handler.event('installed')).toMatchObject({ pages: 4, present: 2 })
    expect(await s.vmm.verify(s.memoryFile, { removed: [[4, 13]] })).toMatchObject({
      wrongCount: 0,
    })
  })

  test.each(['reap', 'on-demand'])('%s ends with SIGTERM, connected or not', async (command) => {
    for (const connect of [false, true]) {
      const s = await scene({ pages: 64 })
      const files = command === 'reap' ? await reapFiles(s, [1, 2]) : ['--memory', s.memoryFile]
      const handler = new BenchHandler([command, '--socket', s.socketPath, ...files])
      await handler.event('listening')
      if (connect) {
        await s.vmm.handshake(s.socketPath)
        await handler.event('connected')
      }
      handler.kill('SIGTERM')
      expect(await handler.exited).toEqual({ code: 0, signal: null })
      expect(await handler.event('ended')).toMatchObject({ reason: 'terminated' })
      expect(existsSync(s.socketPath)).toBe(false)
    }
  })

  test('on-demand serves every page once, and ends with its VMM', async () => {
    const s = await scene({ pages: 1024, regions: 2, order: 'desc' })
    const handler = new BenchHandler([
      ...['on-demand', '--socket', s.socketPath, '--memory', s.memoryFile],
    ])
    await handler.event('listening')
    await s.vmm.handshake(s.socketPath)
    expect(await s.vmm.sweep(4, 3, s.memoryFile, { write: true })).toMatchObject({ wrongCount: 0 })
    await s.vmm.kill()
    expect(await handler.event('ended')).toMatchObject({ reason: 'vm-exited', installed: 1024 })
    expect(await handler.exited).toEqual({ code: 0, signal: null })
  })

  test('files that do not belong together are refused before it listens', async () => {
    const s = await scene({ pages: 64 })
    const files = await reapFiles(s, [1, 2, 63])
    const words = (pages: number[]) =>
      writeFile(join(s.folder, 'pages'), Buffer.from(Uint32Array.from(pages).buffer))
    await words([1, 2])
    const reap = () => run('reap', '--socket', s.socketPath, ...files)
    expect(reap()).toMatchObject({
      status: 1,
      stdout: '',
      stderr: expect.stringMatching(/does not have the pages/),
    })
    await words([1, 2, 64])
    expect(reap()).toMatchObject({
      status: 1,
      stdout: '',
      stderr: expect.stringMatching(/page 64 is not in/),
    })
    expect(run('reap', ...files)).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/--socket is missing/),
    })
    expect(run('reap', '--sockets', 'x')).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/no option/),
    })
  })
})

interface Spread {
  medianUs: number
  leastUs: number
  mostUs: number
}

function expectSpread({ medianUs, leastUs, mostUs }: Spread): void {
  expect(leastUs).toBeGreaterThan(0)
  expect(medianUs).toBeGreaterThanOrEqual(leastUs)
  expect(mostUs).toBeGreaterThanOrEqual(medianUs)
}

describe('limits', () => {
  const limit = (...words: string[]) => {
    const { status, stdout, stderr } = run(...words)
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
    return JSON.parse(stdout)
  }

  test('install: the extents of the list, with one thread to many', async () => {
    const s = await scene({ pages: 512 })
    const pages = recordedPages(512)
    await reapFiles(s, pages)
    const files = ['--memory', s.memoryFile, '--pages', join(s.folder, 'pages')]
    const result = limit('limit-install', ...files, '--threads', '3', '--repetitions', '2')
    const runs = pages.filter((page) => !pages.includes(page + 1)).length
    expect(result).toMatchObject({ bytes: pages.length * 4096, extents: runs, repetitions: 2 })
    expect(result.results.map(({ threads }: { threads: number }) => threads)).toEqual([1, 2, 3])
    result.results.forEach(expectSpread)
    expect(result.results).toContainEqual(result.best)
  })

  test('read: every depth with every block size, the fastest named', async () => {
    const s = await scene({ pages: 512, holes: false })
    const result = limit(
      ...['limit-read', '--file', s.memoryFile, '--threads', '1,2'],
      ...['--blocks', '65536,1048576', '--repetitions', '2'],
    )
    expect(result).toMatchObject({ bytes: 512 * 4096, repetitions: 2 })
    expect(
      result.results.map((r: { threads: number; blockBytes: number }) => [r.threads, r.blockBytes]),
    ).toEqual([1, 2].flatMap((threads) => [65536, 1048576].map((bytes) => [threads, bytes])))
    result.results.forEach(expectSpread)
    const medians: number[] = result.results.map((r: Spread) => r.medianUs)
    expect(result.best.medianUs).toBe(Math.min(...medians))
  })

  test('fault: what the touching process waits, with a handler that sleeps and one that spins', () => {
    const result = limit('limit-fault', '--pages', '200', '--repetitions', '2')
    expect(result).toMatchObject({ pages: 200, repetitions: 2 })
    for (const way of ['sleeping', 'spinning']) {
      expectSpread(result[way].p50)
      expectSpread(result[way].p99)
      expect(result[way].p99.medianUs).toBeGreaterThanOrEqual(result[way].p50.medianUs)
    }
  })

  test('compare: the reads of a comparison, in the groups of the file', async () => {
    const s = await scene({ pages: 512, holes: false })
    const pages = Uint32Array.from(recordedPages(512))
    const set = join(s.folder, 'working-set')
    const memoryBytes = 512 * 4096
    const trace = new Trace({ pageSize: 4096, memoryBytes, pages, timesUs: pages.map((_, i) => i) })
    await WorkingSet.fromTraces([trace]).write(set, { snapshot: { memoryFile: s.memoryFile } })
    const { extents } = await WorkingSet.read(set)
    const files = ['--set', set, '--memory', s.memoryFile]
    const result = limit('limit-compare', ...files, '--repetitions', '2')
    expect(result).toMatchObject({ bytes: pages.length * 4096, repetitions: 2 })
    expect(result.extents).toBeGreaterThanOrEqual(extents.length)
    expectSpread(result.result)
  })

  test('a list of pages outside the memory file is refused', async () => {
    const s = await scene({ pages: 64 })
    await writeFile(join(s.folder, 'pages'), Buffer.from(Uint32Array.of(64).buffer))
    const files = ['--memory', s.memoryFile, '--pages', join(s.folder, 'pages')]
    expect(run('limit-install', ...files)).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/page 64/),
    })
  })
})
