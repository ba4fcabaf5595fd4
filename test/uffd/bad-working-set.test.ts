import { existsSync } from 'node:fs'
import { copyFile, open, readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { Trace, WorkingSet } from '../../src/index.js'
import { makeMemoryFile } from '../support/fake-vmm.js'
import { eventLog, type Scene, scene, serveScene } from '../support/scratch.js'

const PAGES = 1024

function traceOf(memoryPages: number): Trace {
  const pages = Uint32Array.from({ length: 700 }, (_, i) => (i * 37) % PAGES)
  return new Trace({
    pageSize: 4096,
    memoryBytes: memoryPages * 4096,
    pages,
    timesUs: pages.map((_, i) => i),
  })
}

async function set(s: Scene): Promise<string> {
  const path = join(s.folder, 'set')
  await WorkingSet.fromTraces([traceOf(PAGES)]).write(path, {
    snapshot: { memoryFile: s.memoryFile },
  })
  return path
}

async function flip(path: string, offset: number): Promise<void> {
  const file = await open(path, 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, offset)
  byte[0]! ^= 0x10
  await file.write(byte, 0, 1, offset)
  await file.close()
}

/** Where the data of a group begins, read as the format page says. */
async function groupOffset(path: string, group: number): Promise<number> {
  const bytes = await readFile(path)
  return Number(bytes.readBigUInt64LE(Number(bytes.readBigUInt64LE(40)) + 32 * group))
}

interface Damage {
  readonly name: string
  readonly code: string
  readonly check?: string
  readonly harm: (s: Scene, path: string) => Promise<unknown>
}

const damages: Damage[] = [
  {
    name: 'that is something else',
    code: 'ERR_WORKING_SET_INVALID',
    check: 'magic',
    harm: (_, path) => writeFile(path, 'x'.repeat(10_000)),
  },
  {
    name: 'that is empty',
    code: 'ERR_WORKING_SET_INVALID',
    harm: (_, path) => writeFile(path, ''),
  },
  {
    name: 'with a flipped bit in its header',
    code: 'ERR_WORKING_SET_INVALID',
    check: 'header-checksum',
    harm: (_, path) => flip(path, 90),
  },
  {
    name: 'with a flipped bit in its index',
    code: 'ERR_WORKING_SET_INVALID',
    check: 'index-checksum',
    harm: (_, path) => flip(path, 4200),
  },
  {
    name: 'that is cut short',
    code: 'ERR_WORKING_SET_INVALID',
    harm: async (_, path) => truncate(path, (await readFile(path)).length - 4096),
  },
  {
    name: 'of a memory of another size',
    code: 'ERR_SNAPSHOT_MISMATCH',
    check: 'size',
    harm: async (s, path) => {
      const memoryFile = join(s.folder, 'other memory')
      await makeMemoryFile(memoryFile, PAGES + 1)
      await WorkingSet.fromTraces([traceOf(PAGES + 1)]).write(path, { snapshot: { memoryFile } })
    },
  },
]

describe.each(damages)('a working set $name', ({ code, check, harm }) => {
  const expected = check ? { code, check } : { code }

  test('leads to a restore on demand with a warning', async () => {
    const s = await scene({ pages: PAGES })
    const path = await set(s)
    await harm(s, path)
    const log = eventLog()
    const handler = await serveScene(s, { workingSet: path, record: true, onEvent: log.onEvent })
    expect(log.events[0]).toMatchObject({ type: 'warning', error: expected })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 0, complete: false })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect(handler.stopRecording().pages).toHaveLength(PAGES)
  })

  test("is refused with onBadWorkingSet 'fail'", async () => {
    const s = await scene({ pages: PAGES })
    const path = await set(s)
    await harm(s, path)
    await expect(
      serveScene(s, { workingSet: path, onBadWorkingSet: 'fail' }),
    ).rejects.toMatchObject(expected)
  })
})

describe('a working set that does not exist yet', () => {
  test('leads to a restore on demand, complete and without a warning', async () => {
    const s = await scene({ pages: PAGES })
    const workingSet = join(s.folder, 'none')
    const log = eventLog()
    const handler = await serveScene(s, { workingSet, record: true, onEvent: log.onEvent })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 0, complete: true })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect(handler.stopRecording().pages).toHaveLength(PAGES)
    await handler.close()
    expect(log.types()).toEqual(['listening', 'connected', 'closed'])
  })

  test("is refused with onBadWorkingSet 'fail'", async () => {
    const s = await scene({ pages: PAGES })
    const path = join(s.folder, 'none')
    await expect(
      serveScene(s, { workingSet: path, onBadWorkingSet: 'fail' }),
    ).rejects.toMatchObject({ code: 'ERR_WORKING_SET_IO', syscall: 'open', path })
    expect(existsSync(s.socketPath)).toBe(false)
  })

  test('is not one that cannot be opened, which is reported', async () => {
    const s = await scene({ pages: PAGES })
    const workingSet = join(s.memoryFile, 'below a file')
    const log = eventLog()
    const handler = await serveScene(s, { workingSet, onEvent: log.onEvent })
    const error = { code: 'ERR_WORKING_SET_IO', path: workingSet }
    expect(log.events[0]).toMatchObject({ type: 'warning', error })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 0, complete: false })
  })
})

describe('a working set whose data is damaged', () => {
  test('gives no bytes, and its damage is reported when it is compared', async () => {
    const s = await scene({ pages: PAGES })
    const path = await set(s)
    const offset = await groupOffset(path, 1)
    await flip(path, offset + 5)
    const log = eventLog()
    const handler = await serveScene(s, { workingSet: path, onEvent: log.onEvent })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({
      pageCount: 700,
      complete: true,
      source: 'memory-file',
      provenBy: undefined,
    })
    expect(await handler.compared).toBeUndefined()
    const error = { code: 'ERR_WORKING_SET_INVALID', check: 'group-checksum', offset, path }
    expect(log.events).toContainEqual({
      type: 'warning',
      atMs: expect.any(Number),
      error: expect.objectContaining(error),
    })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
    expect((await handler.close()).state).toBe('vm-killed')
  })

  test("is refused with onBadWorkingSet 'fail', before anything listens", async () => {
    const s = await scene({ pages: PAGES })
    const path = await set(s)
    await flip(path, (await groupOffset(path, 0)) + 5)
    await expect(
      serveScene(s, { workingSet: path, onBadWorkingSet: 'fail' }),
    ).rejects.toMatchObject({ code: 'ERR_WORKING_SET_INVALID', check: 'group-checksum' })
  })

  test('that is cut short after it was read gives the order alone', async () => {
    const s = await scene({ pages: PAGES })
    const path = await set(s)
    const workingSet = await WorkingSet.read(path)
    await truncate(path, await groupOffset(path, 1))
    const handler = await serveScene(s, { workingSet })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ complete: true, source: 'memory-file' })
    expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
  })
})

test('a working set travels with a copy of its snapshot', async () => {
  const s = await scene({ pages: PAGES })
  const path = await set(s)
  const memoryFile = join(s.folder, 'memory copy')
  const workingSet = join(s.folder, 'set copy')
  await copyFile(s.memoryFile, memoryFile)
  await copyFile(path, workingSet)
  const handler = await serveScene({ ...s, memoryFile }, { workingSet, onBadWorkingSet: 'fail' })
  await s.vmm.handshake(s.socketPath)
  expect(await handler.prefetched).toMatchObject({ pageCount: 700, complete: true })
})
