import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import type { PageCacheRestore, UffdRestore } from '../../src/index.js'
import { uncalibrated } from '../support/calibration.js'
import type { FakeVmm } from '../support/fake-vmm.js'
import { file, handlerOf, planAndRestore, restored, snapshot, uffd } from '../support/restoring.js'
import { eventLog, fakeVmm } from '../support/scratch.js'
import { failureOf, makeMemory, newPath, PAGE } from '../support/working-sets.js'

uncalibrated()

describe('a working set that cannot be used', () => {
  const damage = (path: string, at: number) => {
    const bytes = readFileSync(path)
    bytes[at]! ^= 0xff
    writeFileSync(path, bytes)
  }
  type Snapshot = Awaited<ReturnType<typeof snapshot>>
  const cases: [string, (s: Snapshot) => object, object][] = [
    [
      'of another kind',
      ({ all }) => ({ workingSet: all.memoryFile }),
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'damaged in its header',
      ({ all }) => {
        damage(all.workingSet, 100)
        return {}
      },
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'damaged in its index',
      ({ all }) => {
        damage(all.workingSet, 4100)
        return {}
      },
      { code: 'ERR_WORKING_SET_INVALID' },
    ],
    [
      'for a memory of another size',
      () => ({ memoryFile: makeMemory(4097) }),
      { code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' },
    ],
    [
      'of traces of another memory',
      ({ set }) => ({ memoryFile: makeMemory(4097), workingSet: set }),
      { code: 'ERR_SNAPSHOT_MISMATCH', check: 'size' },
    ],
  ]
  describe.each(cases)('as it is %s', (_, spoil, error) => {
    test.each(['warm', 'cold'])(
      'leads to the page cache and a warning, when that is %s',
      async (state) => {
        const s = await snapshot()
        const { onEvent, events } = eventLog()
        const options = { ...s.all, ...spoil(s), onEvent }
        if (state === 'cold') await s.evict()
        const restore = await restored(options)
        expect(restore.memBackend).toEqual(file(options.memoryFile))
        expect(await restore.prefetched).toMatchObject({ complete: false })
        expect(events).toEqual([
          { type: 'warning', atMs: expect.any(Number), error: expect.objectContaining(error) },
        ])
      },
    )

    test('is an error where that is asked for', async () => {
      const s = await snapshot()
      const { onEvent, events } = eventLog()
      const options = { ...s.all, ...spoil(s), onEvent, onBadWorkingSet: 'fail' } as const
      for (const backend of ['auto', 'page-cache', 'uffd'] as const) {
        expect(await failureOf(planAndRestore({ ...options, backend }))).toMatchObject(error)
      }
      expect(events).toEqual([])
      expect(existsSync(s.all.socketPath)).toBe(false)
    })

    test('is served on demand where a handler was asked for', async () => {
      const s = await snapshot()
      const { onEvent, events } = eventLog()
      const restore = await restored({ ...s.all, ...spoil(s), onEvent, backend: 'uffd' })
      expect(restore.memBackend).toEqual(uffd(s.all.socketPath))
      expect(events.filter(({ type }) => type === 'warning')).toEqual([
        { type: 'warning', atMs: expect.any(Number), error: expect.objectContaining(error) },
      ])
    })
  })
})

describe('a working set that does not exist yet', () => {
  test.each(['auto', 'page-cache', 'uffd'] as const)(
    'leads to a restore by %s without a warning, or is an error where that is asked for',
    async (backend) => {
      const s = await snapshot()
      const { onEvent, types } = eventLog()
      const workingSet = newPath('nowhere.ws')
      const options = { ...s.all, workingSet, backend, onEvent }
      const restore = await restored(options)
      if (backend === 'uffd') await handshakeOf(restore)
      expect(restore.backend).toBe(backend === 'uffd' ? 'uffd' : 'page-cache')
      expect(await restore.prefetched).toMatchObject({ pageCount: 0, complete: true })
      expect(types()).not.toContain('warning')
      const refused = planAndRestore({ ...options, onBadWorkingSet: 'fail' })
      const error = { code: 'ERR_WORKING_SET_IO', syscall: 'open', path: workingSet }
      expect(await failureOf(refused)).toMatchObject(error)
    },
  )

  test('and is recorded by the restore that misses it', async () => {
    const s = await snapshot()
    const options = { ...s.all, workingSet: newPath('nowhere.ws'), record: true }
    const restore = await restored(options)
    const vmm = await handshakeOf(restore)
    await vmm.read(7, 3)
    expect([...handlerOf(restore).stopRecording().pages]).toEqual([7, 3])
  })

  async function handshakeOf({ memBackend }: UffdRestore | PageCacheRestore): Promise<FakeVmm> {
    const vmm = await fakeVmm()
    await vmm.map(PAGE, [4096 * PAGE])
    await vmm.handshake(memBackend.backend_path)
    return vmm
  }
})
