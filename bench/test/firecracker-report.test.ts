import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { drawBurst } from '../firecracker/chart.mjs'
import { printReport } from '../firecracker/print.mjs'
import { checks, type Measured, makeReport, nameOf } from '../firecracker/report.mjs'
import type { Sample } from '../firecracker/sample.mjs'
import { cpuMsOf, ownCpuMs } from '../lib/cpu-time.mjs'
import { root } from '../lib/machine.mjs'

const machine = { firecracker: '1.12.1', commit: 'abc', rounds: 3 }
const scene = { memoryMib: 256, pages: 1000, extents: 500 }

type Place = Pick<Sample, 'cache' | 'atOnce' | 'busy'>
const place = (cache: 'cold' | 'warm', atOnce = 1, busy = false): Place => ({ cache, atOnce, busy })

/** One sample per time, which is that of the last VM; the median VM takes half of it. */
const samplesOf = (
  arm: string,
  where: Place,
  times: readonly number[],
  more: Partial<Sample> = {},
): Sample[] =>
  times.map((allMs, round) => ({
    ...where,
    cache: where.cache as Sample['cache'],
    arm,
    round,
    allMs,
    vmMs:
      where.atOnce === 1
        ? [allMs]
        : [...Array.from({ length: where.atOnce - 1 }, () => allMs / 2), allMs],
    cpuMs: allMs / 10,
    wrong: 0,
    counts: [{ faults: 7, lateFaults: 2, residualFaults: 0 }],
    ...more,
  }))
const reportOf = (samples: readonly Sample[], more: Partial<Measured> = {}) =>
  makeReport({ machine, scene, samples, limits: [], lazySnapshots: [], firstRestores: [], ...more })
const printed = (report: object) => {
  let text = ''
  printReport(JSON.parse(JSON.stringify(report)), { write: (part: string) => (text += part) })
  return text
}

describe('the report of restores on Firecracker', () => {
  test('takes its ratios round by round, and compares them with their targets', () => {
    const { ratios } = reportOf([
      ...samplesOf('reap', place('warm'), [20, 400, 3000]),
      ...samplesOf('working-set', place('warm'), [10, 100, 1000]),
    ])
    const spread = { value: 3, p25: 2.5, p75: 3.5, pairs: 3 }
    expect(ratios).toEqual({
      reapOverOursWarm: { ...spread, bound: 'at least', target: 1.8, met: true },
    })
  })

  test('separates restores beside endless loops from those on an idle host', () => {
    const { ratios } = reportOf([
      ...samplesOf('on-demand', place('cold'), [10]),
      ...samplesOf('example', place('cold'), [20]),
      ...samplesOf('on-demand', place('cold', 1, true), [90]),
      ...samplesOf('example', place('cold', 1, true), [30]),
    ])
    expect(ratios.onDemandOverExampleCold).toMatchObject({ value: 0.5, met: true })
    expect(ratios.busyOnDemandOverExampleCold).toMatchObject({ value: 3, met: false })
  })

  test('shows the largest burst until its last VM and until its median VM has answered', () => {
    const { ratios } = reportOf([
      ...[2, 8].flatMap((atOnce) => samplesOf('working-set', place('cold', atOnce), [100])),
      ...samplesOf('reap', place('cold', 2), [100]),
      ...samplesOf('reap', place('cold', 8), [500], { vmMs: [300, 300, 500] }),
      ...samplesOf('working-set', place('warm', 8), [80]),
    ])
    expect(ratios.burstReapOverOursCold?.value).toBe(5)
    expect(ratios.burstP50ReapOverOursCold?.value).toBe(6)
    expect(ratios.burstColdOverWarm?.value).toBe(1.25)
    expect(ratios).not.toHaveProperty('burstReapOverOursWarm')
  })

  test('adds up CPU time cold and warm, and the limit of a burst', () => {
    const { ratios, installLimitMs } = reportOf(
      [
        ...samplesOf('working-set', place('cold', 8), [100]),
        ...samplesOf('working-set', place('warm', 8), [300]),
        ...samplesOf('reap', place('cold', 8), [200]),
        ...samplesOf('reap', place('warm', 8), [300]),
        ...samplesOf('file', place('warm'), [20]),
      ],
      { limits: [{ round: 0, installMs: 10 }] },
    )
    expect(ratios.cpuOursOverReap).toMatchObject({ value: 0.8, met: true })
    expect(ratios.burstOverLimitWarm).toMatchObject({ value: 3, met: false })
    expect(installLimitMs?.median).toBe(10)
  })

  test('includes snapshots of lazily restored VMs, and first restores of processes', () => {
    const report = reportOf(samplesOf('working-set', place('warm'), [10]), {
      lazySnapshots: [{ round: 0, lazyMs: 300, residentMs: 200 }],
      firstRestores: [{ round: 0, firstMs: 26, tenthMs: 20 }],
    })
    expect(report.ratios.lazySnapshotOverResident).toMatchObject({ value: 1.5, met: true })
    expect(report.ratios.firstOverTenth).toMatchObject({ value: 1.3, met: false })
    expect(printed(report)).toMatch(
      /^full snapshot of a lazily restored VM: 300\.0 ms .*\nfull snapshot of a resident VM: 200\.0 ms .*\nfirst restore of a process: 26\.0 ms /m,
    )
  })

  test('compares auto with the best arm in its worst place, and not with another build', () => {
    const { ratios } = reportOf([
      ...samplesOf('auto', place('cold'), [11]),
      ...samplesOf('file', place('cold'), [10]),
      ...samplesOf('auto', place('warm', 8), [60, 60]),
      ...samplesOf('file', place('warm', 8), [30, 40]),
      ...samplesOf('working-set', place('warm', 8), [50, 20]),
      ...samplesOf('before', place('warm', 8), [1, 1]),
      ...samplesOf('auto', place('warm', 1, true), [900]),
      ...samplesOf('file', place('warm', 1, true), [10]),
    ])
    expect(ratios.autoOverBest).toMatchObject({ value: 1.75, pairs: 2, met: false })
    expect(ratios.autoOverBest?.place).toBe('8 at once, warm: file')
  })

  test('is printed, the fastest arm first, with what auto chose', () => {
    const where = place('warm', 8)
    const text = printed(
      reportOf([
        ...samplesOf('file', where, [30, 40], { counts: [{}] }),
        ...samplesOf('auto', where, [20, 20], { counts: [{ faults: 1, choice: 'uffd' }] }),
      ]),
    )
    expect(text).toMatch(/^auto +20\.0 +20\.0 +20\.0 +10\.0 +.* 2\.0 +1 +– +– +2 × uffd$/m)
    expect(text).toMatch(/^file +35\.0 .* 3\.5 +– +– +–$/m)
    expect(text.indexOf('\nauto')).toBeLessThan(text.indexOf('\nfile'))
    expect(text).toMatch(/^autoOverBest +0\.58 .* at most 1\.05$/m)
    expect(text).toContain('32 of 32 answers right; 1,000 pages in 500 runs')
  })

  test('is drawn as a burst with one step for each VM that has answered', () => {
    const chart = drawBurst(
      reportOf([
        ...samplesOf('reap', place('warm', 2), [40, 40], { vmMs: [20, 40] }),
        ...samplesOf('working-set', place('warm', 2), [30, 30], { vmMs: [30, 10] }),
        ...samplesOf('working-set', place('cold', 2), [20]),
        ...samplesOf('working-set', place('cold', 1), [900]),
      ]),
    )
    expect(chart).toMatch(/^<svg .*<\/svg>\n$/s)
    // Of 300 for 40 ms, from 490 on; of 260 for two VMs.
    const steps = '565,310 565,180 715,180 715,50'
    expect(chart).toContain(`data-arm="working-set" points="${steps}"`)
    expect(chart.match(/<polyline/g)).toHaveLength(3)
    expect(() => drawBurst(reportOf(samplesOf('reap', place('cold'), [9])))).toThrow(TypeError)
  })

  test('fails for wrong answers and residual faults, and never for slowness', () => {
    const slow = samplesOf('working-set', place('cold'), [9000])
    expect(checks(reportOf(slow))).toEqual([])
    const wrong = samplesOf('file', place('warm', 8), [10, 10], { wrong: 3 })
    expect(checks(reportOf([...slow, ...wrong]))).toEqual(['6 wrong answers'])
    const missing = samplesOf('working-set', place('warm', 8), [10], {
      counts: [{ residualFaults: 11 }],
    })
    expect(checks(reportOf(missing))).toEqual(['8 at once, warm: 11 residual faults of 1000 pages'])
  })

  test('names its places', () => {
    expect(nameOf(place('cold'))).toBe('alone, cold')
    expect(nameOf(place('warm', 8))).toBe('8 at once, warm')
    expect(nameOf(place('warm', 1, true))).toBe('alone, busy, warm')
  })
})

describe('the CPU time of a process', () => {
  // Threads that exit take their time with them.
  test('is that of its threads, and close to the figure of the kernel for this process', {
    retry: 3,
  }, () => {
    const [before, ownBefore] = [cpuMsOf(process.pid), ownCpuMs()]
    const until = performance.now() + 100
    while (performance.now() < until);
    const [spent, own] = [cpuMsOf(process.pid) - before, ownCpuMs() - ownBefore]
    expect(spent).toBeGreaterThan(0)
    expect(Math.abs(spent - own)).toBeLessThan(50)
  })
})

describe('npm run bench:firecracker', () => {
  const bench = (words: readonly string[], env = {}) =>
    spawnSync(process.execPath, [join(root, 'bench/firecracker.mjs'), ...words], {
      encoding: 'utf8',
      env: { ...process.env, ...env },
    })

  test('prints its usage, and measures nothing without Firecracker', () => {
    const help = bench(['--help'])
    expect(help).toMatchObject({ status: 0, stderr: '' })
    expect(help.stdout).toMatch(/--before DIST .*\n.*--quick/)
    expect(bench([], { FIRECRACKER: '/nowhere' })).toMatchObject({
      status: 0,
      stdout: '',
      stderr: expect.stringMatching(/^skipped: needs /),
    })
    expect(bench(['--arms', 'other'])).toMatchObject({
      status: 2,
      stderr: expect.stringMatching(/there is no arm other/),
    })
  })
})
