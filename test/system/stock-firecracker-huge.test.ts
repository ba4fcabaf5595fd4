import { stat } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { cachedSnapshot } from '../../native/guest/driver/microvm-snapshot.mjs'
import { borrowHugePages } from '../support/huge-page-pool.js'
import { missing, recordedSet, restored } from '../support/stock-firecracker.js'

const HUGE = 2 * 2 ** 20
const MEMORY = 128 * 2 ** 20

const lacking = missing ?? (await borrowHugePages(MEMORY / HUGE, MEMORY / HUGE))
if (lacking && !missing) console.log(`skipped: needs ${lacking}`)

const onHugePages = () => cachedSnapshot('huge-pages', { boot: { hugePages: true } })

// One guest at a time: the pool has the pages of one.
describe.skipIf(lacking)('a guest of Firecracker on pages of 2 MiB', () => {
  test('is recorded and restored in whole pages, and no fault is residual', async () => {
    const snapshot = await onHugePages()
    const workingSet = await recordedSet(snapshot, 'm')
    const { vm, handler } = await restored(snapshot, 'ml', { workingSet })
    const { pageSize, memoryBytes } = await handler.connected
    expect({ pageSize, memoryBytes }).toEqual({ pageSize: HUGE, memoryBytes: MEMORY })
    await vm.answer('m')
    await vm.answer('l')
    expect(await handler.prefetched).toMatchObject({ complete: true })
    expect(handler.stats().residualFaults).toBe(0)
    expect((await stat(snapshot.memoryFile)).size).toBe(MEMORY)
  })

  test('is restored with a set that was recorded on pages of 4 KiB', async () => {
    const small = await cachedSnapshot('plain')
    const workingSet = await recordedSet(small, 's')
    // Its memory has the same pages in the same places, and other bytes in a few of the VMM's own.
    const snapshot = await onHugePages()
    const { vm, handler } = await restored(snapshot, 's', { workingSet })
    await vm.answer('s')
    expect(await handler.prefetched).toMatchObject({ complete: true })
    await vm.ask('l')
  })
})
