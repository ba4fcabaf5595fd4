import { describe, expect, test } from 'vitest'
import { randomNumbers } from '../../src/cli/measure/random.mjs'
import { Learner, type LearnerOptions, type Observation } from '../../src/store/learner/learner.js'

const facts = { pageSize: 4096, memoryBytes: 2 ** 28 }
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)
const sorted = (pages: Iterable<number>) => [...pages].toSorted((a, b) => a - b)
const writeCostUs = () => 5000

/** A store in memory: its sets, and what a fault handler would see of a run. */
function store(options: LearnerOptions = {}, learner = Learner.fresh(facts, options)) {
  const random = randomNumbers(7)
  const sets = new Map<string | undefined, readonly number[]>()
  const setOf = (variant?: string) => sets.get(variant) ?? sets.get(undefined)
  const write = () => {
    for (const { variant, pages } of learner.dueSets(writeCostUs)) {
      sets.set(variant, [...pages])
      learner.written(variant, pages)
    }
  }
  const observe = (touched: readonly number[], variant?: string): Observation => {
    const set = setOf(variant)
    const heldOut = learner.heldOut(variant, random)
    const prefetched = set?.filter((page) => !heldOut.includes(page))
    const pages = touched.filter((page) => !prefetched?.includes(page))
    return {
      variant,
      pages: Uint32Array.from(pages),
      timesUs: Uint32Array.from(pages, (_, i) => 50 * i),
      prefetched: prefetched && Uint32Array.from(prefetched),
      heldOut,
      responseMs: 400,
    }
  }
  const restore = (touched: readonly number[], variant?: string) => {
    const drifts = learner.observe([observe(touched, variant)])
    write()
    return drifts
  }
  return { learner, restore, observe, write, sets, setOf }
}

describe('a learner', () => {
  test('makes a set of the first restore, in the order of its touches', () => {
    const { learner } = store()
    expect(learner.dueSets(writeCostUs)).toEqual([])
    const pages = Uint32Array.of(30, 10, 20, 11)
    const timesUs = Uint32Array.of(5, 100, 2000, 9000)
    learner.observe([
      {
        variant: undefined,
        pages,
        timesUs,
        prefetched: undefined,
        heldOut: new Uint32Array(),
        responseMs: 10,
      },
    ])
    const [set, ...others] = learner.dueSets(writeCostUs)
    expect(others).toEqual([])
    expect(set!.variant).toBeUndefined()
    expect(set!.pages).toEqual(pages)
    expect([...set!.timesUs]).toEqual([5, 100, 2000, 9000])
  })

  test('keeps the pages of a set whose touches it cannot see', () => {
    const { restore, setOf } = store()
    for (let i = 0; i < 200; i++) restore(range(0, 500))
    expect(sorted(setOf()!)).toEqual(range(0, 500))
  })

  test('adds pages that restores touch as soon as they are expected to save a write', () => {
    const { restore, setOf } = store()
    restore(range(0, 500))
    restore([...range(0, 500), ...range(1000, 1100)])
    expect(sorted(setOf()!)).toEqual([...range(0, 500), ...range(1000, 1100)])
    restore([...range(0, 500), ...range(1000, 1100), ...range(2000, 2003)])
    expect(setOf()).not.toContain(2000)
    for (let i = 0; i < 40; i++) restore([...range(0, 500), ...range(2000, 2003)])
    expect(setOf()).toContain(2000)
  })

  test('drops pages that held-out ones show to be waste', () => {
    const { restore, setOf, learner } = store()
    restore(range(0, 2000))
    for (let i = 0; i < 400; i++) restore(range(3000, 3500))
    expect(setOf()!.filter((page) => page < 2000)).toEqual([])
    expect(learner.describe().drift?.kind).toBe('waste')
  })

  test('leaves no trace of one huge restore after two half-lives', () => {
    const { restore, setOf } = store()
    for (let i = 0; i < 30; i++) restore(range(0, 500))
    restore(range(0, 4000))
    for (let i = 0; i < 40; i++) restore(range(0, 500))
    expect(sorted(setOf()!)).toEqual(range(0, 500))
  })

  test('holds out few pages of the set, and none if told so', () => {
    const { restore, learner, setOf } = store()
    for (let i = 0; i < 50; i++) restore(range(0, 1000))
    const random = randomNumbers(1)
    const counts = range(0, 100).map(() => {
      const pages = learner.heldOut(undefined, random)
      expect([...pages].filter((page) => !setOf()!.includes(page))).toEqual([])
      expect(new Set(pages).size).toBe(pages.length)
      return pages.length
    })
    const mean = counts.reduce((sum, count) => sum + count) / counts.length
    expect(mean).toBeGreaterThan(0)
    expect(mean).toBeLessThan(10)

    const told = store({ holdOut: false })
    for (let i = 0; i < 5; i++) told.restore(range(0, 1000))
    expect(told.learner.heldOut(undefined, random)).toEqual(new Uint32Array(0))
  })

  test('makes a separate set for a variant where it needs other pages', () => {
    const { restore, setOf, learner } = store()
    for (let i = 0; i < 300; i++) {
      restore(range(0, 1000), 'a')
      restore(range(0, 50), 'b')
    }
    expect(setOf('a')!.length).toBeGreaterThanOrEqual(1000)
    expect(setOf('b')!.length).toBeLessThan(500)
    expect(sorted(setOf('b')!).slice(0, 50)).toEqual(range(0, 50))
    expect(learner.variants).toEqual(['a', 'b'])
  })

  test('gives an unknown variant the common set, and forgets the least used one of more than 16', () => {
    const { learner, restore } = store()
    for (let i = 0; i < 16; i++) restore(range(0, 100), `v${i}`)
    for (let i = 1; i < 16; i++) restore(range(0, 100), `v${i}`)
    const description = learner.describe()
    learner.heldOut('never seen', () => 0)
    expect(learner.describe()).toEqual(description)
    restore(range(0, 100), '\0 or any other name')
    expect(learner.variants).toHaveLength(16)
    expect(learner.variants).not.toContain('v0')
    expect(learner.variants).toContain('\0 or any other name')
  })

  test('learns the same from restores one by one and in a batch', () => {
    const [one, batch] = [store({ holdOut: false }), store({ holdOut: false })]
    for (const { restore } of [one, batch]) restore(range(0, 300))
    const runs = range(0, 20).map((i) => range(i, 320 + i))
    const observations = runs.map((run) => one.observe(run))
    for (const observation of observations) one.learner.observe([observation])
    batch.learner.observe(observations)
    const pagesOf = ({ learner }: typeof one) => [...learner.dueSets(() => 0)[0]!.pages]
    expect(pagesOf(batch)).toEqual(pagesOf(one))
  })

  test('starts a child of the snapshot with what most restores of the parent needed', () => {
    const { learner, restore } = store()
    for (let i = 0; i < 30; i++) {
      restore(i === 7 ? [...range(0, 500), ...range(900, 999)] : range(0, 500))
    }
    const child = store({}, Learner.ofParent(learner))
    child.write()
    expect(sorted(child.setOf()!)).toEqual(range(0, 500))
    expect(child.learner.describe()).toMatchObject({ restores: 0, variants: [], pages: 500 })
    for (let i = 0; i < 20; i++) child.restore(range(400, 600))
    expect(sorted(child.setOf()!)).toEqual(expect.arrayContaining(range(400, 600)))
  })

  test('sees a sudden change within few restores, and follows it', () => {
    const { learner, restore, setOf } = store()
    for (let i = 0; i < 40; i++) restore(range(0, 1000))
    expect(learner.describe().drift).toBeUndefined()
    const drifts = range(0, 10).flatMap(() => restore(range(800, 1800)))
    expect(drifts.length).toBeGreaterThan(0)
    expect(learner.describe().drift).toEqual(drifts.at(-1))
    expect(drifts[0]!.restoreCount).toBeLessThanOrEqual(46)
    expect(sorted(setOf()!)).toEqual(expect.arrayContaining(range(800, 1800)))
  })

  test('uses the costs that restores have measured', () => {
    const { learner } = store()
    const none = { variant: undefined, prefetched: undefined, heldOut: new Uint32Array() }
    const observation = {
      ...{ ...none, faultUs: 4, installUs: 2 },
      pages: Uint32Array.from(range(0, 100)),
      timesUs: Uint32Array.from(range(0, 100)),
    }
    learner.observe([observation])
    expect(learner.describe().costs).toEqual({ faultUs: 4, installUs: 2 })
  })

  test('keeps its senses whatever restores show, and after each is read back as it was written', () => {
    for (const seed of range(1, 12)) {
      const random = randomNumbers(seed)
      const draw = (below: number) => Math.floor(random() * below)
      const drawn = (count: number) => Uint32Array.from({ length: draw(count) }, () => draw(3000))
      let learner = Learner.fresh({ pageSize: 4096, memoryBytes: 2000 * 4096 })
      for (let batch = 0; batch < 20; batch++) {
        const observations = range(0, draw(12)).map((): Observation => {
          const pages = drawn(600)
          return {
            variant: draw(3) === 0 ? undefined : `variant ${draw(20)}`,
            pages,
            timesUs: Uint32Array.from(pages, (_, i) => i * draw(100)).sort(),
            prefetched: draw(4) === 0 ? undefined : drawn(800),
            heldOut: drawn(30),
            ...(draw(2) === 0 && {
              faultUs: 1 + draw(100),
              installUs: random(),
              stalledMs: draw(50),
            }),
            ...(draw(2) === 0 && { responseMs: draw(100) }),
          }
        })
        learner.observe(observations)
        for (const { variant, pages, timesUs, gainUs } of learner.dueSets(() => draw(9000))) {
          expect(Math.max(0, ...pages)).toBeLessThan(2000)
          expect(new Set(pages).size).toBe(pages.length)
          expect(timesUs.every((us, i) => i === 0 || us >= timesUs[i - 1]!)).toBe(true)
          expect(gainUs).toBeGreaterThanOrEqual(0)
          learner.written(variant, pages)
        }
        expect(learner.variants.length).toBeLessThanOrEqual(16)
        for (const variant of [undefined, ...learner.variants]) learner.heldOut(variant, random)
        const description = learner.describe()
        for (const share of [description.quality.residualShare, description.quality.wasteShare]) {
          expect(share ?? 0).toBeGreaterThanOrEqual(0)
          expect(share ?? 0).toBeLessThanOrEqual(1)
        }
        const bytes = learner.encode()
        learner = Learner.decode(bytes)
        expect(learner.describe()).toEqual(description)
        expect(Buffer.compare(learner.encode(), bytes)).toBe(0)
        if (draw(12) === 0) learner = Learner.ofParent(learner)
      }
    }
  })
})

describe('a learner of a busy host', () => {
  test.for([
    ['faster than an install', { faultUs: 3, installUs: 5 }],
    ['free', { faultUs: 0, installUs: 0 }],
    ['cheap beside a preempted install', { faultUs: 40, installUs: 1000 }],
  ] as const)('keeps what every restore touches where faults seem %s', ([, costs]) => {
    const { learner, observe, write, sets } = store()
    const touched = range(0, 1000)
    for (let i = 0; i < 100; i++) {
      learner.observe([{ ...observe(touched), ...(i > 0 && costs) }])
      write()
      expect(sets.get(undefined)).toHaveLength(1000)
    }
  })

  test('learns from a restore with more faults than a call has arguments', () => {
    const { learner, restore } = store({}, Learner.fresh({ ...facts, memoryBytes: 2 ** 32 }))
    restore(range(0, 10))
    restore(range(0, 400_000))
    expect(learner.describe().pages).toBe(400_000)
  })
})
