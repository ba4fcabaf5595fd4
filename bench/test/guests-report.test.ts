import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { PageCache } from '../../native/guest/driver/page-cache.mjs'
import { checks, makeReport, printReport } from '../guests/report.mjs'
import { root } from '../lib/machine.mjs'

const machine = {
  kernel: 'Linux 6',
  cpu: '2 × test',
  storage: 'none',
  node: 'v20',
  commit: 'abc',
  date: '2026-11-24T10:00:00.000Z',
  rounds: 3,
}
const timesOf = (
  arm: string,
  times: readonly number[],
  {
    cache = 'warm',
    choice,
    right = true,
  }: { cache?: string; choice?: string; right?: boolean } = {},
) =>
  ['same', 'other'].flatMap((input) =>
    times.map((responseMs, round) => ({
      arm,
      cache,
      input,
      round,
      responseMs,
      right,
      faults: 7,
      lateFaults: 0,
      residualFaults: 0,
      phases: { fetchMs: 1 },
      ...(choice && { choice, prepareMs: 2 }),
    })),
  )
const reportOf = (
  samples: ReturnType<typeof timesOf>,
  measured: { arms: string[]; caches: string[] },
) =>
  makeReport(
    [
      {
        guest: { name: 'greet', memoryBytes: 2 ** 28 },
        record: { pages: 100, extents: 50, diskPages: 0 },
        warm: [[1], [1]],
        samples,
      },
    ],
    machine,
    measured,
  )
const printed = (report: object) => {
  let text = ''
  printReport(JSON.parse(JSON.stringify(report)), { write: (part: string) => (text += part) })
  return text
}

describe('the report of the guests', () => {
  const arms = ['kernel-file', 'working-set', 'auto']
  const warm = [
    ...timesOf('kernel-file', [40, 400, 4000]),
    ...timesOf('working-set', [20, 200, 2000]),
    ...timesOf('auto', [22, 220, 2200], { choice: 'uffd' }),
  ]

  test('compares auto with the best other arm and kernel-file, round by round', () => {
    const { auto } = reportOf(warm, { arms, caches: ['warm'] }).functions[0]!
    expect(auto.warm.same).toEqual({
      best: 'working-set',
      autoOverBest: { value: 1.1, p25: 1.1, p75: 1.1, pairs: 3 },
      autoOverKernelFile: { value: 0.55, p25: 0.55, p75: 0.55, pairs: 3 },
      choices: { uffd: 3 },
      prepareMs: expect.objectContaining({ median: 2, samples: 3 }),
    })
  })

  test('counts the choices of auto, and has no ratio over kernel-file where reading dominates', () => {
    const caches = ['half-warm']
    const samples = [
      ...timesOf('kernel-file', [30, 30], { cache: 'half-warm' }),
      ...timesOf('auto', [15, 60], { cache: 'half-warm', choice: 'uffd' }),
    ]
    Object.assign(samples.at(-1)!, { choice: 'page-cache' })
    const { auto } = reportOf(samples, { arms: ['kernel-file', 'auto'], caches }).functions[0]!
    expect(auto['half-warm'].other.choices).toEqual({ uffd: 1, 'page-cache': 1 })
    expect(auto['half-warm'].other.autoOverBest).toMatchObject({ value: 1.25, pairs: 2 })
    expect(auto['half-warm'].other).not.toHaveProperty('autoOverKernelFile')
  })

  test('is printed with what auto chose in every cell', () => {
    const text = printed(reportOf(warm, { arms, caches: ['warm'] }))
    expect(text).toMatch(/^greet +warm +same +3 × uffd +2\.0 +working-set +1\.10 .* +0\.55 /m)
    expect(text).toMatch(/^greet +warm +other +3 × uffd/m)
    expect(text).toContain('18 of 18 answers right')
  })

  test('can be printed for one arm in one state, without figures of the others', () => {
    const report = reportOf(timesOf('page-cache', [10, 12], { cache: 'cold' }), {
      arms: ['page-cache'],
      caches: ['cold'],
    })
    expect(report.functions[0]!.auto.cold.same).toBeUndefined()
    expect(report.functions[0]!.gone).toEqual({})
    expect(checks(report, { quick: false })).toEqual([])
    const text = printed(report)
    expect(text).toMatch(/^greet +same +10 \(11\)$/m)
    expect(text).not.toContain('what auto chose')
  })

  test('fails for wrong answers and residual faults, and not for a slow auto', () => {
    const slow = timesOf('auto', [500, 500, 500], { choice: 'page-cache' })
    const measured = { arms, caches: ['warm'] }
    expect(checks(reportOf([...warm, ...slow], measured), { quick: false })).toEqual([])
    const wrong = timesOf('working-set', [20], { right: false })
    expect(checks(reportOf(wrong, measured), { quick: false })).toEqual(['greet: 2 wrong answers'])
    const missing = timesOf('working-set', [20]).map((each) => ({ ...each, residualFaults: 2 }))
    expect(checks(reportOf(missing, measured), { quick: false })).toEqual([
      'greet: 2 residual faults of 100 pages, warm',
    ])
  })
})

describe('the page cache of the benches', () => {
  const mebibyte = 2 ** 20

  // Beside the build, since files on a tmpfs cannot be evicted.
  async function scene(bytes: number) {
    const folder = await mkdtemp(join(root, 'build/page-cache-'))
    onTestFinished(() => rm(folder, { recursive: true, force: true }))
    const cache = await PageCache.open()
    onTestFinished(() => cache.close())
    const file = join(folder, 'file')
    await writeFile(file, Buffer.alloc(bytes, 1), { flush: true })
    return { cache, file }
  }

  test('holds about half of a half-warm file, whether that was cold or warm before', async () => {
    const { cache, file } = await scene(16 * mebibyte)
    for (const before of ['cold', 'warm', 'half-warm']) {
      await cache.set(before, [file], 3)
      await cache.set('half-warm', [file], 4)
      const share = (await cache.resident(file)) / (16 * mebibyte)
      expect(share).toBeGreaterThan(0.48)
      expect(share).toBeLessThan(0.52)
    }
  })

  test('does not change a file of one block, and refuses an unknown state', async () => {
    const { cache, file } = await scene(5000)
    await cache.set('half-warm', [file])
    expect(await cache.resident(file)).toBe(8192)
    await expect(cache.set('tepid', [file])).rejects.toThrow(TypeError)
  })
})
