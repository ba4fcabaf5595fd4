// @ts-check
// Policies of a working set: which pages the next restore of a snapshot prefetches.

/**
 * @typedef {import('./traces.mjs').Run} Run
 * @typedef {import('./traces.mjs').Scenario} Scenario
 * @typedef {ReadonlySet<number>} Pages
 */
/**
 * What a policy does in one restore; `heldOut` are pages of the set that are not prefetched.
 * @typedef {{ set: Pages, heldOut?: Pages } | undefined} Choice  undefined: on demand
 */
/**
 * @typedef {object} Policy
 * @property {(run: Run) => Choice} choose  before the restore; of the run it may know only the variant
 * @property {(run: Run, choice: Choice) => void} observe  after it
 */

/** Pages of the first run, as REAP. @returns {Policy} */
export function firstRun() {
  /** @type {Pages | undefined} */
  let set
  return {
    choose: () => set && { set },
    observe: ({ pages }) => {
      set ??= new Set(pages)
    },
  }
}

/** Pages of the run before, as if each was recorded for nothing. @returns {Policy} */
export function lastRun() {
  /** @type {Pages | undefined} */
  let set
  return {
    choose: () => set && { set },
    observe: ({ pages }) => {
      set = new Set(pages)
    },
  }
}

/** Pages of any run so far. @returns {Policy} */
export function union() {
  /** @type {Set<number>} */
  const set = new Set()
  return {
    choose: () => (set.size > 0 ? { set } : undefined),
    observe: ({ pages }) => {
      for (const page of pages) set.add(page)
    },
  }
}

/** Pages of both of the first two runs, which are on demand. @returns {Policy} */
export function intersection() {
  /** @type {Set<number>[]} */
  const runs = []
  return {
    choose: () => {
      const [first, second] = runs
      return first && second && { set: new Set([...first].filter((page) => second.has(page))) }
    },
    observe: ({ pages }) => {
      if (runs.length < 2) runs.push(new Set(pages))
    },
  }
}

/**
 * Pages of the run itself, of those that an earlier one has touched: the best that is possible
 * without knowing pages that nobody has touched.
 * @returns {Policy}
 */
export function floor() {
  /** @type {Set<number>} */
  const seen = new Set()
  return {
    choose: ({ pages }) => ({ set: new Set(pages.filter((page) => seen.has(page))) }),
    observe: ({ pages }) => {
      for (const page of pages) seen.add(page)
    },
  }
}

/** Pages of the run itself. @returns {Policy} */
export const oracle = () => ({
  choose: ({ pages }) => ({ set: new Set(pages) }),
  observe: () => {},
})

/** The policies without evidence, by name. */
export const simplePolicies = {
  'first run': firstRun,
  'last run': lastRun,
  union,
  intersection,
}

/**
 * The store's learner, which sees of a restore what a fault handler sees: of prefetched pages nothing.
 *
 * @param {import('../../src/store/learner/learner.js').Learner} learner
 * @param {{ faultUs: number, installUs: number, writeUs: number, random: () => number }} costs
 * @returns {Policy & { rewrites: number }}
 */
export function learned(learner, { faultUs, installUs, writeUs, random }) {
  /** @type {Map<string | undefined, Set<number>>} */
  const sets = new Map()
  const rewrite = () => {
    for (const { variant, pages } of learner.dueSets(() => writeUs)) {
      sets.set(variant, new Set(pages))
      learner.written(variant, pages)
      policy.rewrites++
    }
  }
  const policy = {
    rewrites: 0,
    /** @param {Run} run */
    choose({ variant }) {
      const set = sets.get(variant) ?? sets.get(undefined)
      if (!set) return undefined
      return { set, heldOut: new Set(learner.heldOut(variant, random)) }
    },
    /** @param {Run} run @param {Choice} choice */
    observe({ variant, pages, timesUs }, choice) {
      const heldOut = choice?.heldOut ?? new Set()
      const isSeen = (/** @type {number} */ page) => !choice?.set.has(page) || heldOut.has(page)
      const seen = [...pages.keys()].filter((i) => isSeen(/** @type {number} */ (pages[i])))
      const fewerUs = (pages.length - seen.length) * (faultUs - installUs)
      learner.observe([
        {
          variant,
          pages: Uint32Array.from(seen, (i) => /** @type {number} */ (pages[i])),
          timesUs: Uint32Array.from(seen, (i) => /** @type {number} */ (timesUs[i])),
          prefetched: choice && Uint32Array.from(choice.set).filter((page) => !heldOut.has(page)),
          heldOut: Uint32Array.from(heldOut),
          ...(seen.length > 0 && { faultUs }),
          installUs,
          responseMs: Math.max(1, ((timesUs.at(-1) ?? 0) - fewerUs) / 1000),
        },
      ])
      rewrite()
    },
  }
  rewrite()
  return policy
}
