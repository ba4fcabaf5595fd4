import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { beforeAll, describe, expect, test } from 'vitest'
import { Learner } from '../../src/store/learner/learner.js'
import { Replay, type Result } from '../learning/replay.mjs'
import { bestSimple, healedAfter, ratiosOf, tableOf } from '../learning/report.mjs'

const costs = { faultUs: 50, installUs: 1.2, memoryPrice: 0, writeUs: 5000 }
const names = ['pyaes', 'json_serdes', 'json_serdes-child-1', 'image_rotate-shift']

describe('the replay of recorded runs', () => {
  let results: Result[] = []
  let ratios: ReturnType<typeof ratiosOf> = {}

  beforeAll(async () => {
    const replay = new Replay(Learner, costs, 1)
    for (const name of names) results = [...results, await replay.scenario(name)]
    ratios = ratiosOf([results])
  })

  const stall = ({ outcomes }: Result, policy: string) => outcomes[policy]!.stallMs

  test('learns sets that are about as good as the best simple ones in each scenario', () => {
    for (const result of results) {
      expect(stall(result, 'learned') / bestSimple(result), result.name).toBeLessThan(1.1)
    }
    expect(ratios.learnedOverBestSimple!.value).toBeLessThan(1.1)
    expect(ratios.bestSimpleOverLearnedTotal!.value).toBeGreaterThan(0.95)
  })

  test('follows a shift within few restores', () => {
    const shifted = results.find(({ shiftAt }) => shiftAt)!
    expect(healedAfter(shifted)).toBeLessThan(5)
    expect(ratios.shiftHealedRestores).toMatchObject({ target: 10, met: true })
  })

  test('holds out few pages and writes few sets, and tells the waste without seeing it', () => {
    for (const { name, learned } of results) {
      expect(learned.heldOut, name).toBeGreaterThan(0)
      expect(learned.heldOut, name).toBeLessThan(10)
      expect(learned.rewrites, name).toBeLessThan(12)
    }
    expect(ratios.wasteErrorPoints!.value).toBeLessThan(20)
  })

  test('has bounds in the right order: oracle, floor, what a set can do', () => {
    for (const result of results.filter(({ name }) => !name.includes('child'))) {
      expect(stall(result, 'oracle'), result.name).toBeLessThan(stall(result, 'floor'))
      expect(stall(result, 'floor'), result.name).toBeLessThan(bestSimple(result))
      expect(stall(result, 'floor'), result.name).toBeLessThan(stall(result, 'learned'))
    }
  })

  test('gives a table with a row for each scenario', () => {
    const [head, ...rows] = tableOf([results])
    expect(head).toContain('learned')
    expect(rows.map((row) => row.split(/\s/)[0])).toEqual([...names, 'all'])
  })
})

describe('bench/learning/learning.mjs', () => {
  const program = fileURLToPath(new URL('../learning/learning.mjs', import.meta.url))
  const run = (...args: string[]) =>
    spawnSync(process.execPath, [program, ...args], { encoding: 'utf8' })

  test('ends in one line of JSON with the ratios', () => {
    const { stdout, status } = run('--json', '--seeds', '1', '--scenarios', 'pyaes,sqlite')
    expect(status).toBe(0)
    const lines = stdout.trimEnd().split('\n')
    const { ratios } = JSON.parse(lines.at(-1)!)
    expect(lines).toHaveLength(1)
    expect(Object.keys(ratios)).toEqual(
      expect.arrayContaining([
        'learnedOverBestSimple',
        'bestSimpleOverLearnedTotal',
        'learnedOverOracle',
        'learnedOverFloor',
        'wasteErrorPoints',
      ]),
    )
    expect(ratios.learnedOverFloor.value).toBeGreaterThan(1)
  })

  test('draws a curve of the memory price: less waste at more stall', () => {
    const { stdout } = run(
      '--json',
      '--curve',
      '--seeds',
      '1',
      '--scenarios',
      'json_serdes-outliers',
    )
    const { curve } = JSON.parse(stdout)
    expect(curve.at(-1).wasted).toBeLessThan(curve[0].wasted)
    expect(curve.at(-1).stallMs).toBeGreaterThan(curve[0].stallMs)
  })

  test('says what is wrong with its options', () => {
    expect(run('--scenarios', 'nothing').stderr).toContain('--scenarios has no nothing')
    expect(run('--fault-us', 'x')).toMatchObject({ status: 2 })
    expect(run('--help').stdout).toContain('usage: npm run bench:learning')
  })
})
