import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { serve, Trace, WorkingSet } from '../../src/index.js'
import { threadGuest } from '../support/page-cache.js'
import { scratchFolder } from '../support/scratch.js'
import { readSet } from '../support/second-reader.js'
import { makeMemory, newPath, PAGE } from '../support/working-sets.js'

const touched = Array.from({ length: 400 }, (_, i) => (i * 797) % 4096)

describe.skipIf(process.arch !== 'x64')('a recording', () => {
  test.each([
    ['a guest that only reads', 1, 0, 0],
    ['a guest that writes to every second page', 2, 0.4, 0.6],
    ['a guest that reads a page before it writes to it', 3, 1, 1],
  ])('says which share of its pages was changed by %s', async (_, kind, least, most) => {
    const memoryFile = makeMemory(4096)
    const socketPath = join(await scratchFolder(), 's')
    const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
    onTestFinished(() => void handler.close({ vm: 'leave' }).catch(() => {}))
    const touches = touched.flatMap((page, i) => {
      if (kind === 3) return [{ page }, { page, write: true }]
      // Scattered, so that no sampling in step meets only one kind.
      return { page, write: kind === 2 && (i * 7) % 10 < 5 }
    })
    const guest = threadGuest(memoryFile, touches, {
      pause: ['done'],
      userModeOnly: true,
      socketPath,
    })
    await guest.event('done')
    const trace = handler.stopRecording()
    expect(trace.writtenShare).toBeGreaterThanOrEqual(least)
    expect(trace.writtenShare).toBeLessThanOrEqual(most)
    const path = newPath('set')
    const set = WorkingSet.fromTraces([trace])
    await set.write(path, { snapshot: { memoryFile } })
    expect((await WorkingSet.read(path)).writtenShare).toBeCloseTo(trace.writtenShare!, 2)
    expect(readSet(path).writtenTouches).toBe(Math.round(trace.writtenShare! * touched.length))
    await guest.kill()
  })
})

describe('the share of written pages', () => {
  const trace = (writtenShare?: number) =>
    new Trace({
      pageSize: PAGE,
      memoryBytes: 8 * PAGE,
      pages: Uint32Array.of(1, 2),
      timesUs: Uint32Array.of(0, 1),
      writtenShare,
    })

  test('of merged runs is the mean of those of which it is known', () => {
    const merge = (...shares: (number | undefined)[]) =>
      WorkingSet.fromTraces(shares.map(trace)).writtenShare
    expect(merge(0, 1)).toBe(0.5)
    expect(merge(undefined, 0.5)).toBe(0.5)
    expect(merge(undefined, undefined)).toBeUndefined()
  })

  test('is kept as unknown where nobody looked', async () => {
    const memoryFile = makeMemory(8)
    const path = newPath('set')
    await WorkingSet.fromTraces([trace()]).write(path, { snapshot: { memoryFile } })
    expect((await WorkingSet.read(path)).writtenShare).toBeUndefined()
    expect(readSet(path).writtenTouches).toBeUndefined()
  })

  test.each([-0.1, 1.1, Number.NaN, '1'])('is from 0 to 1, and not %s', (share) => {
    expect(() => trace(share as number)).toThrow(/"writtenShare" of Trace to be a number from 0/)
  })
})
