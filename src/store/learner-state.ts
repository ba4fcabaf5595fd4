import type { Evidence } from './evidence.js'

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
