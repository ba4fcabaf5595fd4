import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { uncalibrated } from '../support/calibration.js'
import { file, planAndRestore, restored, snapshot, uffd } from '../support/restoring.js'
import { eventLog } from '../support/scratch.js'
import { failureOf, makeMemory, newPath } from '../support/working-sets.js'

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
      'missing',
      () => ({ workingSet: newPath('nowhere.ws') }),
      { code: 'ERR_WORKING_SET_IO', syscall: 'open' },
    ],
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
  describe.each(cases)('as it is %s', (name, spoil, error) => {
    const isOnlySeenWhenUsed = name === 'damaged in its index'
    test.each(['warm', 'cold'])(
      'leads to the page cache and a warning, when that is %s',
      async (state) => {
        const s = await snapshot()
        const { onEvent, events } = eventLog()
        const options = { ...s.all, ...spoil(s), onEvent }
        if (state === 'cold') await s.evict()
        const restore = await restored(options)
        if (state === 'warm' && isOnlySeenWhenUsed) {
          // Nothing is brought, so that nothing of it is used.
          expect(restore.memBackend).toEqual(file(options.memoryFile))
          expect(await restore.prefetched).toMatchObject({ bytes: 0, complete: true })
          expect(events).toEqual([])
          return
        }
        expect(restore.memBackend).toEqual(file(options.memoryFile))
        expect(await restore.prefetched).toMatchObject({ complete: false, error })
        expect(events).toEqual([{ type: 'warning', error: expect.objectContaining(error) }])
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
        { type: 'warning', error: expect.objectContaining(error) },
      ])
    })
  })
})
