import type { Evidence } from './evidence.js'

/** Options of a learner. */
export interface LearnerOptions {
  /**
   * What an installed page costs beyond its install, in microseconds, for the memory it takes.
   * @default 0
   */
  readonly memoryPrice?: number | undefined
  /**
   * Whether restores leave out a few pages of their set, to see whether they are needed.
   * @default true
   */
  readonly holdOut?: boolean | undefined
}

/** Memory of the guest that a learner learns about, in bytes. */
export interface LearnerFacts {
  readonly pageSize: number
  readonly memoryBytes: number
}

/** A change of what restores touch. */
export interface Drift {
  /**
   * `touches`: restores touch pages that they hardly touched before; `waste`: they no longer touch
   * pages of their set.
   */
  readonly kind: 'touches' | 'waste'
  /** Variant of the restores that showed it. */
  readonly variant: string | undefined
  /** Number of restores with evidence when it was seen. */
  readonly restoreCount: number
}

/** A set that is worth writing. */
export interface ProposedSet {
  readonly variant: string | undefined
  /** In the order of their expected first touch. */
  readonly pages: Uint32Array
  readonly timesUs: Uint32Array
  /** Expected gain of a restore over the set in use, in microseconds. */
  readonly gainUs: number
}

/** Decayed means over restores with a set, each `undefined` before the first one. */
export interface Quality {
  /** Share of the touched pages that the set did not have, from 0 to 1. */
  readonly residualShare: number | undefined
  /** Share of the set that was not touched, from 0 to 1: an estimate from held-out pages. */
  readonly wasteShare: number | undefined
  /** Time during which the guest waited for pages, in milliseconds. */
  readonly stalledMs: number | undefined
}

/** What a learner knows. Counts of pages are in pages of the guest. */
export interface LearnerDescription {
  readonly restores: number
  readonly pages: number
  readonly variants: readonly {
    readonly name: string
    readonly restores: number
    /** Pages of its own set, 0 if it uses the common one. */
    readonly setPages: number
  }[]
  readonly setPages: number
  readonly quality: Quality & { readonly past: Quality }
  readonly costs: { readonly faultUs: number; readonly installUs: number }
  readonly drift: Drift | undefined
}

/** A decayed mean. */
export interface Mean {
  sum: number
  weight: number
}

/** Everything that is kept between two openings of the store. */
export interface LearnerState {
  readonly facts: LearnerFacts
  readonly evidence: Evidence
  /** Of each scope: pages of its own set, 0 without one; gain that was missed since it was written. */
  readonly ledgers: readonly (
    | { readonly setPages: number; readonly regretUs: number }
    | undefined
  )[]
  readonly means: Means
  readonly drift: Drift | undefined
}

export const meanNames = [
  'faultUs',
  'installUs',
  'responseUs',
  'spanUs',
  'residualCount',
  'residualShare',
  'stalledMs',
  'wasteShare',
  'pastResidualShare',
  'pastStalledMs',
  'pastWasteShare',
] as const
export type MeanName = (typeof meanNames)[number]
export type Means = Record<MeanName, Mean>

export const emptyMeans = (): Means =>
  Object.fromEntries(meanNames.map((name) => [name, { sum: 0, weight: 0 }])) as unknown as Means
