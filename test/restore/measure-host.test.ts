import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { kvmMissing } from '../../native/guest/driver/kvm-guest.mjs'
import { measureHost } from '../../src/index.js'
import { hostCosts, withoutHostCosts } from '../support/host-costs.js'
import { scratchFolder } from '../support/scratch.js'
import { failureOf } from '../support/working-sets.js'

withoutHostCosts()

const positive = (value: unknown) => {
  expect(value).toBeTypeOf('number')
  expect(value).toBeGreaterThan(0)
}

describe.skipIf(process.arch !== 'x64')('the measurement of a host', () => {
  test('finds what pages and reads cost, and keeps it', async () => {
    const folder = await scratchFolder()
    const path = join(folder, 'kept/costs.json')
    process.env.REAP_TRACE_HOST_COSTS = path
    const shares: number[] = []
    const costs = await measureHost({ onProgress: ({ share }) => shares.push(share) })
    expect(Object.keys(costs.guests)).toEqual(kvmMissing() ? ['threads'] : ['threads', 'kvm'])
    for (const { mapped, installed } of Object.values(costs.guests)) {
      for (const { fixedMs, pageUs } of [mapped.large, mapped.small, installed]) {
        positive(pageUs)
        expect(fixedMs).toBeGreaterThanOrEqual(0)
      }
    }
    for (const cost of Object.values(costs.disk)) positive(cost)
    expect(Object.keys(costs.disk)).toHaveLength(3)
    positive(costs.indexUs)
    positive(costs.smallLookNs)
    expect(costs.disks).toEqual({})
    expect(JSON.parse(readFileSync(path, 'utf8'))).toEqual(costs)
    // Nothing else is left.
    expect(readdirSync(join(folder, 'kept'))).toEqual(['costs.json'])
    expect(shares[0]).toBe(0)
    expect(shares.at(-1)).toBe(1)
    expect(shares).toEqual([...shares].sort((a, b) => a - b))
  })

  test.each([0, 0.3, 0.9])(
    'ends with its signal after a share of %f, and leaves nothing',
    async (at) => {
      const folder = await scratchFolder()
      const path = hostCosts('as it was')
      const controller = new AbortController()
      const reason = new Error('enough')
      let isAborted = false
      const measured = measureHost({
        folder,
        signal: controller.signal,
        onProgress: ({ share }) => {
          if (share < at || isAborted) return
          isAborted = true
          // In the middle of what comes next, not between.
          setImmediate(() => controller.abort(reason))
        },
      })
      await expect(measured).rejects.toBe(reason)
      expect(readdirSync(folder)).toEqual([])
      expect(readFileSync(path, 'utf8')).toBe('as it was')
    },
  )

  test('does not begin when its signal is aborted', async () => {
    const folder = join(await scratchFolder(), 'new')
    const reason = new Error('enough')
    const signal = AbortSignal.abort(reason)
    await expect(measureHost({ folder, signal })).rejects.toBe(reason)
    expect(existsSync(folder)).toBe(false)
  })

  const noTmpfs = !existsSync('/dev/shm')
  test.skipIf(noTmpfs)('refuses a folder in memory, where no read can be measured', async () => {
    const failure = await failureOf(measureHost({ folder: '/dev/shm' }))
    expect(failure).toMatchObject({ code: 'ERR_PAGE_CACHE', check: 'stays', path: '/dev/shm' })
    expect(readdirSync('/dev/shm').filter((name) => name.startsWith('measure-'))).toEqual([])
  })
})

test('a folder that cannot be written to is refused, with its name', async () => {
  const folder = await scratchFolder()
  const file = join(folder, 'file')
  writeFileSync(file, '')
  expect(await failureOf(measureHost({ folder: join(file, 'below') }))).toMatchObject({
    code: 'ERR_WORKING_SET_IO',
    path: join(file, 'below'),
    syscall: 'mkdir',
    hint: expect.any(String),
  })
  // So it is, and before anything is measured, where the costs are to be kept.
  process.env.REAP_TRACE_HOST_COSTS = join(file, 'below/costs.json')
  const shares: number[] = []
  const measured = measureHost({ folder, onProgress: ({ share }) => shares.push(share) })
  const failure = await failureOf(measured)
  expect(failure).toMatchObject({
    code: 'ERR_WORKING_SET_IO',
    path: join(file, 'below/costs.json'),
    hint: expect.stringContaining('REAP_TRACE_HOST_COSTS'),
  })
  expect(failure.message).toContain('costs of this host')
  expect(shares).toEqual([])
  expect(readdirSync(folder)).toEqual(['file'])
})

test.each([
  ['no options', null, /measureHost\(\) expects an options object/],
  ['an empty folder', { folder: '' }, /"folder" of measureHost\(\)/],
  ['no listener', { onProgress: 1 }, /"onProgress" of measureHost\(\) to be a function/],
  ['another spelling', { onprogress: () => {} }, /did you mean "onProgress"\?/],
])('misuse is a TypeError: %s', async (_, options, message) => {
  const misuse = measureHost(options as never)
  await expect(misuse).rejects.toThrow(TypeError)
  await expect(misuse).rejects.toThrow(message)
})
