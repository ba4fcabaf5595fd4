import { describe, expect, test } from 'vitest'
import { cells, huge, middle, nameOf, small } from '../replay/cells.mjs'
import { drawChart } from '../replay/chart.mjs'
import { orderOf } from '../replay/measure.mjs'
import { printReport } from '../replay/print.mjs'
import { makeReport, pairedRatio, type Sample } from '../replay/report.mjs'

const sceneOf = (name: string, pages: number) => ({
  name,
  pages,
  meanRun: 2,
  memoryBytes: 2 * pages * 4096,
  memoryFile: '',
  trace: '',
  workingSet: '',
  pageList: '',
  reapPages: '',
})
const machine = {
  kernel: 'Linux <6>',
  cpu: '2 × test',
  storage: 'none',
  node: 'v20',
  commit: 'abc',
  date: '2026-11-24T10:00:00.000Z',
  rounds: 3,
}
const measured = (samples: Sample[]) => ({
  machine,
  scenes: [sceneOf(small, 2560), sceneOf(middle, 16384), sceneOf(huge, 262144)],
  samples,
  limits: [],
  faults: [],
  comparisons: [],
  besides: [],
  victims: [],
})
const timesOf = (cell: object, times: readonly number[]): Sample[] =>
  times.map((responseMs, round) => ({ cell: nameOf(cell), round, responseMs }))

describe('the order of a round', () => {
  const ofMiddle = cells.filter(({ scene }) => scene === middle)
  const isWarm = ({ guest, cache }: (typeof cells)[number]) =>
    guest === 'process' && cache === 'warm'

  test('contains each cell once, with compared cells one after the other', () => {
    const order = orderOf(ofMiddle, 4)
    expect([...order].sort((a, b) => a.name.localeCompare(b.name))).toEqual(
      [...ofMiddle].sort((a, b) => a.name.localeCompare(b.name)),
    )
    const first = order.findIndex(isWarm)
    const warm = ofMiddle.filter(isWarm)
    expect(order.slice(first, first + warm.length).every(isWarm)).toBe(true)
  })

  test('puts each cell first and last at times, and is reproducible for a round', () => {
    const warm = ofMiddle.filter(isWarm)
    const orders = Array.from({ length: 200 }, (_, round) => orderOf(warm, round))
    for (const at of [0, warm.length - 1]) {
      expect(new Set(orders.map((order) => order[at]!.name)).size).toBe(warm.length)
    }
    expect(orderOf(warm, 7)).toEqual(orders[7])
  })
})

describe('the report of the bench', () => {
  test('takes ratios round by round, so that a drifting machine does not distort them', () => {
    const warm = { scene: middle, cache: 'warm' } as const
    const report = makeReport(
      measured([
        ...timesOf({ ...warm, arm: 'on-demand' }, [100, 1000, 10_000]),
        ...timesOf({ ...warm, arm: 'working-set' }, [10, 100, 1000]),
      ]),
    )
    expect(report.ratios).toEqual({
      onDemandOverOursWarm: {
        value: 10,
        p25: 10,
        p75: 10,
        pairs: 3,
        bound: 'at least',
        target: 7,
        met: true,
      },
    })
  })

  test('pairs only the rounds that have both', () => {
    const over = new Map([
      [0, 8],
      [1, 9],
      [2, 10],
    ])
    expect(
      pairedRatio(
        over,
        new Map([
          [2, 5],
          [0, 2],
        ]),
      ),
    ).toEqual([4, 2])
    expect(pairedRatio(over, new Map())).toEqual([])
  })

  test('takes the limit of the variant with the lowest median', () => {
    const limit = (round: number, one: number, two: number) => ({
      scene: middle,
      round,
      install: { '1': one, '2': two },
      read: { a: 30 },
    })
    const paused = { scene: middle, arm: 'working-set', paused: true, cache: 'warm' } as const
    const report = makeReport({
      ...measured([0, 1, 2].map((round) => ({ cell: nameOf(paused), round, sinceConnectMs: 20 }))),
      limits: [limit(0, 30, 16), limit(1, 28, 18), limit(2, 5, 40)],
    })
    expect(report.limits.scenes[middle]?.installMs).toMatchObject({ way: '2', median: 18 })
    expect(report.ratios.installEfficiency).toMatchObject({ value: 0.9, pairs: 3, met: true })
  })

  test('compares a comparison with its reads, cold and warm, and faults beside one with faults alone', () => {
    const beside = (round: number, besideP99Us: number, wentOn = true) => ({
      round,
      aloneP50Us: 8,
      aloneP99Us: 50,
      besideP50Us: 9,
      besideP99Us,
      comparisons: 4,
      wentOn,
    })
    const report = makeReport({
      ...measured([]),
      comparisons: [
        { round: 0, cache: 'cold', verifyMs: 110, readsMs: 100 },
        { round: 0, cache: 'warm', verifyMs: 26, readsMs: 20 },
      ],
      // The comparisons of the last one ended before its faults.
      besides: [beside(0, 50), beside(1, 54), beside(2, 500, false)],
      victims: [
        { round: 0, aloneP99Us: 20, besideP99Us: 26, prefetchMs: 250 },
        { round: 3, aloneP99Us: 20, besideP99Us: 30, prefetchMs: 250 },
      ],
    })
    expect(report.ratios.compareOverReadsCold).toMatchObject({ value: 1.1, pairs: 1, met: true })
    expect(report.ratios.compareOverReadsWarm).toMatchObject({ value: 1.3, pairs: 1, met: false })
    expect(report.ratios.faultP99DuringCompare).toMatchObject({ value: 1.04, pairs: 2, met: true })
    expect(report.ratios.victimP99).toMatchObject({ value: 1.4, pairs: 2, met: true })
    let text = ''
    printReport(report, { write: (part: string) => (text += part) })
    expect(text).toContain(`during a prefetch of ${huge} 28.0 µs, alone 20.0 µs`)
    expect(text).toContain(`a comparison of ${middle}, warm: 26.0 ms, its reads alone 20.0 ms`)
    expect(text).toContain('beside comparisons 9.0 (52.0) µs, alone 8.0 (50.0) µs')
  })

  test('omits cells that were not measured, and shows the number of rounds of each figure', () => {
    const cold = { scene: small, arm: 'reap', cache: 'cold' } as const
    const { results, ratios } = makeReport(measured(timesOf(cold, [5])))
    expect(Object.keys(results)).toEqual([nameOf(cold)])
    expect(results[nameOf(cold)].responseMs).toMatchObject({ median: 5, samples: 1 })
    expect(ratios).toEqual({})
  })

  test('is printed with its missed targets', () => {
    const warm = { scene: middle, cache: 'warm' } as const
    const report = makeReport(
      measured([
        ...timesOf({ ...warm, arm: 'reap' }, [20]),
        ...timesOf({ ...warm, arm: 'working-set' }, [10]),
      ]),
    )
    let text = ''
    printReport(JSON.parse(JSON.stringify(report)), { write: (part: string) => (text += part) })
    expect(text).toMatch(/^reapOverOursWarm +2\.00 .*at least 2\.5 {3}missed$/m)
    expect(text).toMatch(/^linux-64-of-512, process, reap, warm +20\.0/m)
  })

  test('names every cell once', () => {
    expect(new Set(cells.map(({ name }) => name)).size).toBe(cells.length)
  })
})

describe('the chart of the bench', () => {
  const samples = [small, middle].flatMap((scene, i) =>
    (['cold', 'warm'] as const).flatMap((cache) => [
      ...timesOf({ scene, cache, arm: 'working-set' }, [10 * 4 ** i, 11 * 4 ** i, 12 * 4 ** i]),
      ...timesOf({ scene, cache, arm: 'on-demand' }, [100 * 4 ** i, 110 * 4 ** i, 120 * 4 ** i]),
    ]),
  )
  const chart = drawChart(makeReport(measured(samples)))
  const linesOf = (arm: string) =>
    [...chart.matchAll(new RegExp(`<polyline data-arm="${arm}" points="([^"]*)"`, 'g'))].map(
      ([, points]) => points!.split(' ').map((point) => point.split(',').map(Number)),
    )

  test('has a line for each measured arm in both panels, with larger times higher', () => {
    for (const arm of ['working-set', 'on-demand']) expect(linesOf(arm)).toHaveLength(2)
    expect(linesOf('reap')).toHaveLength(0)
    const [ours, demand] = [linesOf('working-set')[0]!, linesOf('on-demand')[0]!]
    expect(ours).toHaveLength(2)
    expect(ours[1]![0]).toBeGreaterThan(ours[0]![0]!)
    expect(ours[1]![1]).toBeLessThan(ours[0]![1]!)
    expect(demand[0]![1]).toBeLessThan(ours[0]![1]!)
  })

  test('stays inside its frame, and names the machine', () => {
    for (const [, x, y] of chart.matchAll(/c[xy]="([\d.]+)" cy="([\d.]+)"/g)) {
      expect(Number(x)).toBeLessThan(900)
      expect(Number(y)).toBeLessThan(430)
    }
    expect(chart).toContain('Linux &lt;6&gt;, 2 × test')
    expect(chart).toContain('2026-11-24')
  })

  test('cannot be drawn without samples', () => {
    expect(() => drawChart(makeReport(measured([])))).toThrow(TypeError)
  })
})
