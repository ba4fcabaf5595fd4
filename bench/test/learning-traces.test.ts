import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { functionNames } from '../../native/guest/linux/index.mjs'
import { Trace } from '../../src/index.js'
import { makePlans } from '../learning/scenarios.mjs'
import {
  decodeScenario,
  encodeScenario,
  pathOf,
  readScenario,
  scenarioNames,
} from '../learning/traces.mjs'

const names = scenarioNames()

function jaccard(one: Uint32Array, other: Uint32Array): number {
  const [a, b] = [new Set(one), new Set(other)]
  const both = [...a].filter((page) => b.has(page)).length
  return both / (a.size + b.size - both)
}

const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!

describe.each(names)('the recorded runs of %s', (name) => {
  test('are traces of a guest of its size, in first-touch order', async () => {
    const { name: own, memoryBytes, pageSize, runs } = await readScenario(name)
    expect(own).toBe(name)
    for (const { pages, timesUs, writtenShare } of runs) {
      // Checks the pages' range, and that none is there twice.
      expect(() => new Trace({ pageSize, memoryBytes, pages, timesUs, writtenShare })).not.toThrow()
      expect(timesUs).toEqual(timesUs.toSorted())
    }
  })

  test('are mostly on the same pages, and never all on the same', async () => {
    const { runs, shiftAt = runs.length } = await readScenario(name)
    const usual = runs.slice(0, shiftAt).filter(({ outlier }) => !outlier)
    const overlaps = usual.slice(1).map(({ pages }, i) => jaccard(pages, usual[i]!.pages))
    expect(median(overlaps)).toBeGreaterThan(0.4)
    expect(Math.min(...overlaps)).toBeGreaterThan(0.2)
    expect(Math.min(...overlaps)).toBeLessThan(1)
  })

  test('are what the plan of the scenarios asks for', async () => {
    const { seed, runs, shiftAt, child, remade, ...facts } = await readScenario(name)
    const plans = makePlans({ runs: 40, seed: 1 })
    const plan = plans.find((plan) => plan.name === name)!
    expect({ seed, function: facts.function, shiftAt, remade, of: child?.of }).toEqual({
      seed: plan.seed,
      function: plan.function,
      shiftAt: plan.shiftAt,
      remade: plan.remade,
      of: plan.child?.of,
    })
    const asked = ({ variant, outlier }: { variant: string; outlier?: string }) => [
      variant,
      outlier,
    ]
    expect(runs.map(asked)).toEqual(plan.requests.map(asked))
  })
})

test('there are runs of every function, and of each kind of scenario', async () => {
  expect(names).toEqual(expect.arrayContaining([...functionNames]))
  expect(names.toSorted()).toEqual(
    makePlans({ runs: 1, seed: 1 })
      .map(({ name }) => name)
      .sort(),
  )
  const scenarios = await Promise.all(names.map(readScenario))
  expect(scenarios.filter(({ shiftAt }) => shiftAt)).toHaveLength(3)
  for (const { name, runs } of scenarios.filter(({ name }) => name.endsWith('-outliers'))) {
    expect(runs.filter(({ outlier }) => outlier).length / runs.length, name).toBe(1 / 20)
  }
  for (const { child, remade } of scenarios) {
    const of = child?.of ?? remade?.of
    if (of) expect(names).toContain(of)
  }
})

test('what a snapshot that was made again has of the first one is in both', async () => {
  const scenarios = await Promise.all(names.map(readScenario))
  for (const { name, remade, carried, memoryBytes, pageSize } of scenarios) {
    expect(carried === undefined, name).toBe(remade === undefined)
    if (!remade || !carried) continue
    const touched = new Set((await readScenario(remade.of)).runs.flatMap(({ pages }) => [...pages]))
    expect([...carried.pages].filter((page) => !touched.has(page))).toEqual([])
    expect(carried.pages).toEqual(carried.pages.toSorted())
    expect(Math.max(...carried.places)).toBeLessThan(memoryBytes / pageSize)
    expect(carried.places).toHaveLength(carried.pages.length)
  }
})

test('the recorded runs are small', () => {
  const bytes = names.reduce((sum, name) => sum + readFileSync(pathOf(name)).length, 0)
  expect(bytes).toBeLessThan(2 * 2 ** 20)
})

test('runs are read as they were written, but for the resolution of their times', () => {
  const facts = {
    ...{ name: 'made', function: 'made', memoryBytes: 2 ** 42, pageSize: 4096 },
    ...{ timeUnitUs: 100, seed: 1 },
  }
  const runOf = (pages: number[], timesUs: number[]) => ({
    ...{ variant: 'any', writtenShare: 0.5 },
    ...{ pages: Uint32Array.from(pages), timesUs: Uint32Array.from(timesUs) },
  })
  const huge = 2 ** 30 - 1
  const runs = [runOf([5, 4, huge, 0], [99, 100, 250, 2 ** 32 - 1]), runOf([], [])]
  const carried = { pages: Uint32Array.of(4, 5), places: Uint32Array.of(huge, 5) }
  const bytes = encodeScenario({ ...facts, runs, carried })
  const rounded = [runOf([5, 4, huge, 0], [0, 100, 200, 4294967200]), runOf([], [])]
  expect(decodeScenario(bytes)).toEqual({ ...facts, runs: rounded, carried })
  expect(() => decodeScenario(bytes.subarray(0, bytes.length - 3))).toThrow()
  const later = Buffer.from(
    bytes.toString('latin1').replace('"version":1', '"version":2'),
    'latin1',
  )
  expect(() => decodeScenario(later)).toThrow('version 2')
})
