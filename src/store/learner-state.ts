import type { Evidence } from './evidence.js'

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

export interface LearnerFacts {
  readonly pageSize: number
  readonly memoryBytes: number
}

/** A change of what restores touch. */
export interface Drift {
  /** `touches`: restores touch many pages that no set has; `waste`: they no longer touch those it has. */
  readonly kind: 'touches' | 'waste'
  readonly variant: string | undefined
  /** Number of restores ever when it was seen. */
  readonly restores: number
}

export interface ProposedSet {
  readonly variant: string | undefined
  /** In the order of their expected first touch. */
  readonly pages: Uint32Array
  readonly timesUs: Uint32Array
  /** Expected gain a restore over the set in use. */
  readonly gainUs: number
}

/** Decayed means of restores with a set; `undefined` before the first one. */
export interface Quality {
  /** Pages that were touched and not prefetched, of all that were touched. */
  readonly residualShare: number | undefined
  /** Pages that are prefetched and not touched, of the set, as held-out pages tell. */
  readonly wasteShare: number | undefined
  readonly stalledMs: number | undefined
}

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
