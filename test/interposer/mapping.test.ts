import { chmod, rename, truncate, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { describe, expect, test } from 'vitest'
import { type FaultHandler, interposerEnvironment, Trace, WorkingSet } from '../../src/index.js'
import { type Answer, type FakeVmm, makeMemoryFile } from '../support/fake-vmm.js'
import { expectServed, fakeVmm, isRoot, scratchFolder, serveScene } from '../support/scratch.js'

const PAGES = 512
const PAGE = 4096

interface Mapped extends Answer {
  readonly address: string
  /** Whether it is where it was asked to be. */
  readonly where: boolean
  /** Of a call that succeeds, and that was 0 before. */
  readonly errnoAfter: number
  /** Permissions, and the path if it is a file's. */
  readonly mapping: string
}

interface Place {
  readonly folder: string
  readonly memoryFile: string
  readonly socketPath: string
  readonly vmm: FakeVmm
}

/** A VMM with the library in it, and a memory file in its environment. */
async function interposed(
  { onUnreachable = 'file' }: { onUnreachable?: 'file' | 'stop' } = {},
  change: (env: Record<string, string>) => Record<string, string> = (env) => env,
): Promise<Place> {
  const folder = await scratchFolder()
  const memoryFile = join(folder, 'memory')
  await makeMemoryFile(memoryFile, PAGES)
  const socketPath = join(folder, 'uffd.sock')
  const env = interposerEnvironment({
    snapshot: { memoryFile },
    socketPath,
    onUnreachable,
    env: {},
  })
  return { folder, memoryFile, socketPath, vmm: await fakeVmm({ env: change(env) }) }
}

/** Sends a command that must succeed. */
async function run<T extends Answer = Answer>(vmm: FakeVmm, command: string): Promise<T> {
  const answer = await vmm.send<T>(command)
  expect(answer, command).toMatchObject({ ok: true })
  return answer
}

const mapFile = ({ vmm, memoryFile }: Place, first: number, count: number, options = '') =>
  run<Mapped>(vmm, `map-file ${memoryFile} ${first * PAGE} ${count * PAGE} ${options}`.trimEnd())

const compare = async ({ vmm, memoryFile }: Place, { address }: Mapped, first: number, n: number) =>
  run<Answer & { same: boolean; mapping: string }>(
    vmm,
    `compare ${address} ${memoryFile} ${first * PAGE} ${n * PAGE}`,
  )

/** What a VMM has written to stderr in its life, which ends here. */
async function allSaid(vmm: FakeVmm): Promise<string> {
  await vmm.kill()
  return vmm.stderr
}

const isServed = { ok: true, where: true, mapping: 'rw-p', errnoAfter: 0 }
const isFile = ({ memoryFile }: Place, permissions = 'rw-p') => ({
  ok: true,
  where: true,
  mapping: `${permissions} ${memoryFile}`,
  errnoAfter: 0,
})

describe('the memory file', () => {
  test.each(['', 'reserved=1', 'flag=populate', 'reserved=1 flag=populate'])(
    'is served when it is mapped in one piece: %s',
    async (options) => {
      const place = await interposed()
      const handler = await serveScene(place)
      expect(await mapFile(place, 0, PAGES, options)).toMatchObject(isServed)
      expect(await handler.connected).toMatchObject({
        pid: place.vmm.pid,
        memoryBytes: PAGES * PAGE,
      })
      expect(await place.vmm.present(0, PAGES)).toMatchObject({ count: 0 })
      expect(await place.vmm.verify(place.memoryFile)).toMatchObject({
        wrongCount: 0,
        pages: PAGES,
      })
      const { installed, zero } = (await handler.close()).stats
      expect(installed + zero).toBe(PAGES)
      expect(await allSaid(place.vmm)).toBe('')
    },
  )

  test.each([
    ['ascending', [0, 100, 300]],
    ['in any order', [300, 0, 100]],
  ])('is served in parts, %s', async (_, starts) => {
    const place = await interposed()
    const handler = await serveScene(place)
    const ends = new Map([
      [0, 100],
      [100, 300],
      [300, PAGES],
    ])
    for (const start of starts) {
      expect(await mapFile(place, start, ends.get(start)! - start, 'reserved=1')).toMatchObject(
        isServed,
      )
    }
    const { regions } = await handler.connected
    expect(regions.map(({ offset }) => offset / PAGE)).toEqual([0, 100, 300])
    expect(await place.vmm.sweep(4, 1, place.memoryFile)).toMatchObject({ wrongCount: 0 })
    expect((await handler.close()).stats.faults).toBeGreaterThanOrEqual(PAGES)
  })

  test('is served in parts of which one is mapped twice', async () => {
    const place = await interposed()
    const handler = await serveScene(place)
    expect(await mapFile(place, 0, PAGES / 2)).toMatchObject(isServed)
    const twice = await mapFile(place, 0, PAGES / 2, 'aside=1')
    expect(twice).toMatchObject(isFile(place))
    expect(await mapFile(place, PAGES / 2, PAGES / 2)).toMatchObject(isServed)
    expect((await handler.connected).regions).toHaveLength(2)
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
    expect(await compare(place, twice, 0, PAGES / 2)).toMatchObject({ same: true })
  })

  test('has its working set prefetched', async () => {
    const place = await interposed()
    const pages = Uint32Array.from({ length: 200 }, (_, i) => (i * 37) % PAGES)
    const memoryBytes = PAGES * PAGE
    const trace = new Trace({ pageSize: PAGE, memoryBytes, pages, timesUs: pages.map((_, i) => i) })
    const handler = await serveScene(place, { workingSet: WorkingSet.fromTraces([trace]) })
    await mapFile(place, 0, PAGES)
    expect(await handler.prefetched).toMatchObject({ pageCount: 200, complete: true })
    expect(await place.vmm.present(0, PAGES)).toMatchObject({ count: 200 })
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
    expectServed((await handler.close()).stats, PAGES - 200)
  })

  test.each([
    ['whole', '', { served: 1, wrong: 0 }],
    ['in parts', 'parts=1', { served: 8, wrong: 0 }],
  ])('may be mapped %s by eight threads at once', async (_, options, expected) => {
    const place = await interposed()
    const handler = await serveScene(place)
    const command = `map-at-once ${place.memoryFile} 8 ${options}`.trimEnd()
    expect(await run(place.vmm, command)).toMatchObject(expected)
    expect((await handler.connected).regions).toHaveLength(expected.served)
    expect(await allSaid(place.vmm)).toBe('')
  })

  test('is the plain file for whoever maps it again', async () => {
    const place = await interposed()
    await serveScene(place)
    await mapFile(place, 0, PAGES)
    const again = await mapFile(place, 0, PAGES, 'aside=1')
    expect(again).toMatchObject(isFile(place))
    expect(await compare(place, again, 0, PAGES)).toMatchObject({ same: true })
    const over = await mapFile(place, 10, 20, `aside=1 at=${BigInt(again.address) + 40960n}`)
    expect(over).toMatchObject(isFile(place))
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
  })

  test('is left unserved behind its end', async () => {
    const place = await interposed()
    const handler = await serveScene(place)
    const { address, ...mapped } = await mapFile(place, 0, PAGES + 8, 'aside=1')
    expect(mapped).toMatchObject(isServed)
    expect((await handler.connected).memoryBytes).toBe(PAGES * PAGE)
    const tail = await run<{ mapping: string } & Answer>(
      place.vmm,
      `compare ${BigInt(address) + BigInt(PAGES * PAGE)} ${place.memoryFile} 0 0`,
    )
    expect(tail).toMatchObject({ mapping: `rw-p ${place.memoryFile}` })
  })

  test.skipIf(!isRoot)(
    'is served when all of the future is locked in memory (skipped without root)',
    async () => {
      const place = await interposed()
      const handler = await serveScene(place)
      await run(place.vmm, 'lock-future')
      expect(await mapFile(place, 0, PAGES)).toMatchObject(isServed)
      expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
      expect(handler.stats().faults).toBeGreaterThan(0)
    },
  )
})

describe('left alone', () => {
  test('are reading, sharing and other files', async () => {
    const place = await interposed()
    await serveScene(place)
    const other = { ...place, memoryFile: join(place.folder, 'other') }
    await makeMemoryFile(other.memoryFile, PAGES)
    expect(await mapFile(place, 0, PAGES, 'as=readonly aside=1')).toMatchObject(
      isFile(place, 'r--p'),
    )
    expect(await mapFile(other, 0, PAGES, 'aside=1')).toMatchObject(isFile(other))
    expect(await mapFile(other, 8, 9, 'aside=1 reserved=1')).toMatchObject(isFile(other))
    expect(await mapFile(other, 0, PAGES, 'as=shared aside=1')).toMatchObject(isFile(other, 'rw-s'))
    for (let i = 0; i < 2; i++) {
      expect(await mapFile(place, 0, PAGES, 'as=shared aside=1')).toMatchObject(
        isFile(place, 'rw-s'),
      )
    }
    // And after all of them the memory is served.
    expect(await mapFile(place, 0, PAGES)).toMatchObject(isServed)
    expect(await allSaid(place.vmm)).toBe(
      `reap-trace: ${place.memoryFile} is mapped shared, and only a private mapping can be served (share=off, MAP_PRIVATE)\n`,
    )
  })

  test.each([
    ['there is only the library', ({ LD_PRELOAD = '' }) => ({ LD_PRELOAD })],
    ['a variable is missing', ({ REAP_TRACE_SOCKET: _, ...env }) => env],
  ] as [string, (env: Record<string, string>) => Record<string, string>][])(
    'is everything when %s',
    async (_, change) => {
      const place = await interposed({ onUnreachable: 'stop' }, change)
      const mapped = await mapFile(place, 0, PAGES)
      expect(mapped).toMatchObject(isFile(place))
      expect(await compare(place, mapped, 0, PAGES)).toMatchObject({ same: true })
      expect(await allSaid(place.vmm)).toBe('')
    },
  )

  test('is everything when the memory file is gone', async () => {
    const place = await interposed()
    const other = { ...place, memoryFile: join(place.folder, 'other') }
    await rename(place.memoryFile, other.memoryFile)
    expect(await mapFile(other, 0, PAGES, 'aside=1')).toMatchObject(isFile(other))
    expect(await allSaid(place.vmm)).toBe('')
  })

  test('are the errors of the kernel', async () => {
    const place = await interposed()
    await serveScene(place)
    const other = join(place.folder, 'other')
    await makeMemoryFile(other, PAGES)
    const map = (words: string, file = place.memoryFile) =>
      place.vmm.send(`map-file ${file} ${words}`)
    for (const file of [place.memoryFile, other]) {
      expect(await map('0 0', file)).toMatchObject({ ok: false, errno: -22 })
      expect(await map(`100 ${PAGE}`, file)).toMatchObject({ ok: false, errno: -22 })
      expect(await map(`0 ${2 ** 50}`, file)).toMatchObject({ ok: false, errno: -12 })
    }
    const { address } = await mapFile(place, 0, PAGES)
    const noreplace = `0 ${PAGES * PAGE} at=${address} flag=noreplace`
    expect(await map(noreplace)).toMatchObject({ ok: false, errno: -17 })
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
  })
})

describe('what cannot be served', () => {
  const nobody = 'no fault handler is at'

  test.each(['', 'reserved=1', 'flag=populate', 'at=0x600000000000 flag=noreplace'])(
    'is the plain file when nobody listens, once and for all: %s',
    async (options) => {
      const place = await interposed()
      for (const more of [options, '']) {
        const mapped = await mapFile(place, 0, PAGES, `${more} aside=1`.trimStart())
        expect(mapped).toMatchObject(isFile(place))
        expect(await compare(place, mapped, 0, PAGES)).toMatchObject({ same: true })
      }
      expect(await allSaid(place.vmm)).toBe(
        `reap-trace: ${place.memoryFile} is not served: ${nobody} ${place.socketPath}: No such file or directory; the plain file is mapped instead\n`,
      )
    },
  )

  test('ends the process if it is asked to', async () => {
    const place = await interposed({ onUnreachable: 'stop' })
    await expect(mapFile(place, 0, PAGES)).rejects.toThrow(`${nobody} ${place.socketPath}`)
    expect(await place.vmm.exited).toEqual({ code: 69, signal: null })
  })

  test('are parts that are touched before there are all: they become the plain file', async () => {
    const place = await interposed()
    const handler = await serveScene(place)
    expect(await mapFile(place, 0, 100, 'reserved=1')).toMatchObject(isServed)
    expect(await mapFile(place, 300, 100)).toMatchObject(isServed)
    await run(place.vmm, 'leave-child')
    expect(await place.vmm.verifyPages(place.memoryFile, 0, 100)).toMatchObject({ wrongCount: 0 })
    expect(await place.vmm.verifyPages(place.memoryFile, 300, 100)).toMatchObject({ wrongCount: 0 })
    expect(await mapFile(place, 100, 200)).toMatchObject(isFile(place))
    expect(await mapFile(place, 400, 112)).toMatchObject(isFile(place))
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
    expect(handler.stats().faults).toBe(0)
    expect(await allSaid(place.vmm)).toMatch(
      /^reap-trace: .*touched before all of it was mapped.*\n$/,
    )
  })

  test('keeps what was written by the touch that came too early', async () => {
    const place = await interposed()
    await mapFile(place, 0, 100)
    await place.vmm.write(7, 0xab)
    const written = { written: { 7: 0xab } }
    expect(await place.vmm.verifyPages(place.memoryFile, 0, 100, written)).toMatchObject({
      wrongCount: 0,
    })
  })

  test.each([
    ['remove 0 8', 'it was touched'],
    ['mprotect 0 8 none', 'a part of it was changed'],
    ['munmap 50 50', 'a part of it was changed'],
    ['move 0 100 200', 'a part of it was changed'],
  ])('are parts that are changed before there are all: %s', async (command, why) => {
    const place = await interposed()
    await mapFile(place, 0, 100)
    // Which keeps the userfaultfd from being closed.
    await run(place.vmm, 'leave-child')
    await run(place.vmm, command)
    const [first, count] = command.startsWith('move') ? [0, 0] : [8, 42]
    expect(await place.vmm.verifyPages(place.memoryFile, first, count)).toMatchObject({
      wrongCount: 0,
    })
    expect(await mapFile(place, 100, 412, 'aside=1')).toMatchObject(isFile(place))
    expect(await allSaid(place.vmm)).toBe(
      `reap-trace: ${place.memoryFile} is not served: ${why} before all of it was mapped; the plain file is mapped instead\n`,
    )
  })

  test('is a part that something else was mapped over, which stays', async () => {
    const place = await interposed()
    const other = { ...place, memoryFile: join(place.folder, 'other') }
    await makeMemoryFile(other.memoryFile, PAGES, { seed: 2 })
    const { address } = await mapFile(place, 0, 100)
    const over = await mapFile(other, 0, 100, `aside=1 at=${address}`)
    expect(over).toMatchObject(isFile(other))
    await mapFile(place, 100, 412)
    expect(await compare(other, over, 0, 100)).toMatchObject({ same: true })
  })

  test.each([
    ['a size that is no multiple of the page size', '', 'its size is not a multiple'],
    ['MAP_LOCKED', 'flag=locked', 'MAP_LOCKED'],
  ])('is %s', async (_, options, message) => {
    const place = await interposed()
    await serveScene(place)
    if (options === '') await truncate(place.memoryFile, PAGES * PAGE - 100)
    expect(await mapFile(place, 0, PAGES, options)).toMatchObject(isFile(place))
    expect(await allSaid(place.vmm)).toContain(message)
  })
})

describe('served memory', () => {
  async function served(): Promise<Place & { handler: FaultHandler }> {
    const place = await interposed()
    const handler = await serveScene(place)
    await mapFile(place, 0, PAGES)
    return { ...place, handler }
  }

  test('is zeros where it was given back, and else as before', async () => {
    const place = await served()
    await place.vmm.read(3, 4, 5)
    await place.vmm.remove(4, 60)
    const removed = { removed: [[4, 63]] as [number, number][] }
    expect(await place.vmm.verify(place.memoryFile, removed)).toMatchObject({ wrongCount: 0 })
  })

  test('is not there in a forked child, which would read zeros', async () => {
    const { vmm } = await served()
    expect(await run(vmm, 'read-in-child 5')).toMatchObject({ signal: 11 })
  })

  test('may be protected and unmapped', async () => {
    const place = await served()
    await place.vmm.mprotect(0, 100, 'none')
    await place.vmm.mprotect(0, 100, 'rw')
    await place.vmm.munmap(400, 112)
    expect(await place.vmm.verifyPages(place.memoryFile, 0, 400)).toMatchObject({ wrongCount: 0 })
  })

  test('neither moves nor grows, but may shrink', async () => {
    const place = await served()
    for (const command of ['move 0 512 1024', 'move 10 20 21']) {
      expect(await place.vmm.send(command)).toMatchObject({ ok: false, errno: -22 })
    }
    await run(place.vmm, 'move 0 512 256')
    expect(await place.vmm.verifyPages(place.memoryFile, 0, 256)).toMatchObject({ wrongCount: 0 })
    expect(await allSaid(place.vmm)).toContain('mremap() is refused')
  })

  test.each([
    ['the end of it, unmapped', 'munmap 256 256', 256, 256],
    ['its beginning, unmapped', 'munmap 0 100', 0, 100],
    ['a hole in it, unmapped', 'munmap 100 50', 100, 50],
    ['a hole in it, mapped over', '', 200, 20],
    ['the end of it, by which it shrank', 'move 100 412 12', 112, 400],
  ])('does not hold what came in place of %s', async (_, command, first, count) => {
    const place = await served()
    const other = { ...place, memoryFile: join(place.folder, 'other') }
    await makeMemoryFile(other.memoryFile, PAGES, { seed: 2 })
    const { regions } = await place.handler.connected
    const address = regions[0]!.baseAddress + first * PAGE
    if (command !== '') await run(place.vmm, command)
    const how = command === '' ? '' : 'flag=noreplace'
    const over = await mapFile(other, 0, count, `aside=1 at=${address} ${how}`.trimEnd())
    expect(over).toMatchObject(isFile(other))
    const kept = [
      { at: 0, neighbor: first - 1, pages: first },
      { at: first + count, neighbor: first + count, pages: PAGES - first - count },
    ].filter(({ pages }) => pages > 0)
    for (const { neighbor } of kept) {
      expect(await place.vmm.send(`move ${neighbor} 1 2`)).toMatchObject({ ok: false, errno: -22 })
    }
    await run(place.vmm, `move ${first} ${count} ${count * 2}`)
    for (const { at, pages } of kept) {
      expect(await place.vmm.verifyPages(place.memoryFile, at, pages)).toMatchObject({
        wrongCount: 0,
      })
    }
  })

  test('waits when its handler is gone, and does not read zeros', async () => {
    const place = await interposed()
    const handler = await serveScene(place)
    await mapFile(place, 0, PAGES)
    await handler.connected
    await handler.close({ vm: 'leave' })
    await place.vmm.bg('reader', 'read 5')
    expect(await place.vmm.wait('reader', 100)).toBeUndefined()
    expect(await place.vmm.present(0, PAGES)).toMatchObject({ count: 0 })
  })

  test('is served on when the VMM closes descriptors that it does not know', async () => {
    const place = await served()
    await run(place.vmm, 'close-descriptors')
    expect(await place.vmm.verify(place.memoryFile)).toMatchObject({ wrongCount: 0 })
  })

  test.skipIf(!isRoot)(
    'of a user without /dev/userfaultfd says what it lacks (skipped without root)',
    async () => {
      const uid = 65534
      const place = await interposed()
      await chmod(place.folder, 0o755)
      await chmod(place.memoryFile, 0o666)
      await serveScene(place, { peerUid: uid })
      const { memoryFile, socketPath } = place
      const env = interposerEnvironment({ snapshot: { memoryFile }, socketPath, env: {} })
      const vmm = await fakeVmm({ uid, env })
      expect(await mapFile({ ...place, vmm }, 0, PAGES)).toMatchObject(isServed)
      expect(await vmm.verify(memoryFile)).toMatchObject({ wrongCount: 0 })
      expect(await allSaid(vmm)).toMatch(/^reap-trace: only faults of user mode are served/)
    },
  )
})

describe('interposerEnvironment()', () => {
  test('names the library, the file and the socket, and keeps LD_PRELOAD', async () => {
    const folder = await scratchFolder()
    const memoryFile = join(folder, 'memory')
    await writeFile(memoryFile, Buffer.alloc(PAGE))
    const env = { LD_PRELOAD: '/lib/other.so', HOME: '/' }
    expect(
      interposerEnvironment({ snapshot: { memoryFile }, socketPath: 'uffd.sock', env }),
    ).toEqual({
      LD_PRELOAD: expect.stringMatching(/\/reap-interposer\.so:\/lib\/other\.so$/),
      REAP_TRACE_MEMORY: memoryFile,
      REAP_TRACE_SOCKET: resolve('uffd.sock'),
      REAP_TRACE_WHEN_UNREACHABLE: 'stop',
    })
  })

  test('refuses misuse with a TypeError', () => {
    const call = (options: object) => () => interposerEnvironment(options as never)
    const snapshot = { memoryFile: 'm' }
    const both = { snapshot, socketPath: 's' }
    expect(call({ socketPath: 's' })).toThrow(/"snapshot" of interposerEnvironment\(\)/)
    expect(call({ ...both, snapshot: {} })).toThrow(
      /"memoryFile" of the snapshot of interposerEnvironment\(\)/,
    )
    expect(call({ snapshot, socketPath: `/${'s'.repeat(107)}` })).toThrow(/107 bytes/)
    expect(call({ ...both, onUnreachable: 'no' })).toThrow(/"file" or "stop", got "no"/)
    expect(call({ ...both, env: 'PATH=/' })).toThrow(TypeError)
    expect(call({ ...both, socket: 's' })).toThrow(/no option "socket"/)
  })

  test('says that there is no memory file', async () => {
    const folder = await scratchFolder()
    const call = (memoryFile: string) => () =>
      interposerEnvironment({ snapshot: { memoryFile }, socketPath: 's' })
    const failure = expect.objectContaining({ code: 'ERR_SOURCE_READ' })
    expect(call(join(folder, 'nowhere'))).toThrow(failure)
    expect(call(folder)).toThrow(failure)
  })
})
