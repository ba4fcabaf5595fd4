import { describe, expect, test } from 'vitest'
import { planRestore, restore, serve } from '../../src/index.js'
import { range, recordedSet, type Scene, scene, scrambled, serveScene } from '../support/scratch.js'

const PAGES = 600
const order = scrambled(PAGES).slice(0, 400)
const heldOut = [order[3]!, order[77]!, order[201]!, order[399]!]
const outside = scrambled(PAGES)[500]!

const touch = async (s: Scene, pages: readonly number[]) => {
  await s.vmm.read(...pages)
  expect((await s.vmm.verify(s.memoryFile)).wrong).toEqual([])
}

describe('pages that are held out', () => {
  test('are missing after the prefetch, and each fault on one is residual and recorded', async () => {
    const s = await scene({ pages: PAGES, regions: 2, order: 'desc' })
    const handler = await serveScene(s, {
      workingSet: await recordedSet(s, order),
      heldOutPages: Uint32Array.of(...heldOut.toReversed(), outside, 2 ** 32 - 1),
      record: true,
    })
    await s.vmm.handshake(s.socketPath)
    expect(await handler.prefetched).toMatchObject({ pageCount: 396, complete: true })
    for (const page of heldOut) expect((await s.vmm.present(page, 1)).count).toBe(0)
    expect((await s.vmm.present(0, PAGES)).count).toBe(396)
    await s.vmm.read(...order)
    expect(handler.stats()).toMatchObject({ prefetched: 396, residualFaults: 4, lateFaults: 0 })
    expect([...handler.stopRecording().pages]).toEqual(heldOut)
    await touch(s, range(0, PAGES))
  })

  test('are those that the call had, whatever the caller does with the array', async () => {
    const s = await scene({ pages: PAGES })
    const heldOutPages = Uint32Array.from(heldOut)
    const serving = serveScene(s, { workingSet: await recordedSet(s, order), heldOutPages })
    heldOutPages.fill(order[0]!)
    const handler = await serving
    await s.vmm.handshake(s.socketPath)
    await handler.prefetched
    for (const page of heldOut) expect((await s.vmm.present(page, 1)).count).toBe(0)
    expect((await s.vmm.present(order[0]!, 1)).count).toBe(1)
    await touch(s, order)
  })

  test('may be none, all of the set, or of no set', async () => {
    const workingSetOf = (s: Scene) => recordedSet(s, order)
    for (const [of, heldOutPages, prefetched] of [
      [workingSetOf, new Uint32Array(), 400],
      [workingSetOf, Uint32Array.from(order), 0],
      [() => undefined, Uint32Array.from(heldOut), 0],
    ] as const) {
      const s = await scene({ pages: PAGES })
      const handler = await serveScene(s, { workingSet: await of(s), heldOutPages })
      await s.vmm.handshake(s.socketPath)
      expect(await handler.prefetched).toMatchObject({ pageCount: prefetched, complete: true })
      await touch(s, order)
      await handler.close()
    }
  })

  test('are passed on by restore()', async () => {
    const s = await scene({ pages: PAGES })
    const { memoryFile, socketPath } = s
    const workingSet = await recordedSet(s, order)
    const plan = await planRestore({ snapshot: { memoryFile }, workingSet, backend: 'uffd' })
    const heldOutPages = Uint32Array.from(heldOut)
    await using restored = await restore(plan, { socketPath, heldOutPages })
    await s.vmm.handshake(socketPath)
    expect(await restored.prefetched).toMatchObject({ pageCount: 396 })
    await touch(s, order)
  })

  test('are a Uint32Array', async () => {
    const s = await scene({ pages: 16 })
    const { memoryFile, socketPath } = s
    for (const heldOutPages of [[3], new Uint8Array(1), 3, null, { length: 1 }]) {
      const options = { snapshot: { memoryFile }, socketPath, heldOutPages } as never
      await expect(serve(options)).rejects.toThrow(
        /^Expected the option "heldOutPages" of serve\(\) to be a Uint32Array, got /,
      )
    }
  })
})
