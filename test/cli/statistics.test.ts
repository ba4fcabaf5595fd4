import { describe, expect, it } from 'vitest'
import { toCsv } from '../../src/cli/compare/export.js'
import { makeReport } from '../../src/cli/compare/report.js'
import type { Run } from '../../src/cli/compare/rounds.js'
import { median, outliers, summary } from '../../src/cli/measure/statistics.mjs'

const facts = { complete: true, command: ['x'], memory: 'm', workingSet: 's', rounds: 6, seed: 1 }

/** Runs of an arm with a warm page cache, one per round. */
const runsOf = (arm: Run['arm'], times: readonly number[]): Run[] =>
  times.map((ms, i) => ({
    ...{ arm, cache: 'warm', round: i + 1, leftOut: undefined },
    sample: { ms, until: 'ready', backend: 'kernel-file', stats: undefined },
  }))

describe('statistics', () => {
  it('interpolates quartiles, and ignores what is no number', () => {
    expect(summary([4, 1, Number.NaN, 3, undefined, 2])).toMatchObject({
      ...{ median: 2.5, p25: 1.75, p75: 3.25, least: 1, samples: 4 },
    })
    expect(summary([])).toBeUndefined()
    expect(median([Number.POSITIVE_INFINITY])).toBeUndefined()
  })

  it('finds the value that is far from the others, and none in a wide spread', () => {
    expect(outliers([10, 11, 10.5, 9.5, 10, 90])).toEqual([false, false, false, false, false, true])
    expect(outliers([10, 20, 30, 40, 50])).not.toContain(true)
    expect(outliers([10, 10, 10, 10, 50])).not.toContain(true)
  })
})

describe('a report', () => {
  it('compares the times of each round', () => {
    const runs = [
      ...runsOf('kernel-file', [100, 200, 100, 200, 100, 200]),
      ...runsOf('working-set', [50, 100, 50, 100, 50, 100]),
    ]
    const report = makeReport({ ...facts, runs })
    expect(report.warm[1]!.ratio).toEqual({ median: 0.5, p25: 0.5, p75: 0.5, samples: 6 })
    expect(report.warnings).toEqual([])
    expect(report.conclusions.warm).toEqual([
      'With a warm page cache, working-set is fastest: 2.0 times as fast as kernel-file (2.0 to 2.0).',
    ])
  })

  it('counts the choices of auto', () => {
    const runs = runsOf('auto', [100, 100, 100]).map((run) => {
      const backend = run.round === 1 ? ('uffd' as const) : ('page-cache' as const)
      return { ...run, sample: { ...run.sample!, backend } }
    })
    const { conclusions } = makeReport({ ...facts, runs })
    expect(conclusions.warm).toEqual(['auto chose uffd 1 time and page-cache 2 times.'])
  })

  it('calls no arm faster whose quartiles lie on both sides of the base', () => {
    const runs = [
      ...runsOf('kernel-file', [100, 100, 100, 100]),
      ...runsOf('working-set', [80, 90, 105, 120]),
    ]
    const report = makeReport({ ...facts, runs })
    expect(report.conclusions.warm[0]).toMatch(/^No arm is clearly faster than kernel-file: /)
    expect(report.warnings).toEqual([expect.stringContaining('only 4 runs')])
  })

  it('does not count a run in another state of the page cache, and says so', () => {
    const runs = runsOf('kernel-file', [100, 100, 100, 100, 100, 900]).map((run) =>
      run.round === 6 ? { ...run, leftOut: 'not warm: m' } : run,
    )
    const report = makeReport({ ...facts, runs })
    expect(report.warm[0]).toMatchObject({ ms: { samples: 5 }, leftOutCount: 1 })
    expect(report.warnings).toEqual([
      expect.stringMatching(/1 run left out.*not warm: m.*must end/),
    ])
  })

  it('warns of outliers and of times that are hardly longer than a process', () => {
    const runs = runsOf('kernel-file', [3, 3.1, 3.2, 3.1, 3, 90])
    const { warnings } = makeReport({ ...facts, runs })
    expect(warnings).toEqual([
      expect.stringMatching(/^1 outlier among .*quiet machine/),
      expect.stringMatching(/^some arms take less than 5 ms.*mark when it answers/),
    ])
  })

  it('says how much was measured, and until when', () => {
    const runs = runsOf('auto', [1, 2])
    const [first] = runsOf('kernel-file', [3])
    const mixed = [...runs, { ...first!, sample: { ...first!.sample!, until: 'end' as const } }]
    expect(makeReport({ ...facts, runs }).basis).toBe(
      "medians and quartiles of 6 interleaved rounds, from the restore request to COMMAND's ready mark",
    )
    expect(makeReport({ ...facts, complete: false, runs: mixed }).basis).toMatch(
      /of 3 runs, before the end of 6 interleaved rounds, .* mark, or its end in runs without one$/,
    )
  })

  it('quotes a CSV field that needs it', () => {
    const [run] = runsOf('auto', [1])
    const csv = toCsv([{ ...run!, sample: undefined, leftOut: 'failed: "a", b' }])
    expect(csv.split('\n')[1]).toBe('warm,1,auto,,,,,,,,"failed: ""a"", b"')
  })
})
