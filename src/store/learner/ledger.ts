import type { HoldOutPlan } from './hold-out.js'
import { MEMORY } from './scope.js'

/** What is known of the set that restores of a scope use. */
export interface Ledger {
  /** Pages of the scope's own set, 0 without one. */
  setPages: number
  /** What another set would have gained since the last one was written. */
  regretUs: number
  /** What it would gain in the next restore, and what of that by pages that are missing. */
  gainUs: number
  missingUs: number
  /** Of each slot, as of the last revision. */
  probabilities: Float32Array | undefined
  plan: HoldOutPlan | undefined
}

export const newLedger = (): Ledger => ({
  setPages: 0,
  regretUs: 0,
  gainUs: 0,
  missingUs: 0,
  probabilities: undefined,
  plan: undefined,
})

/**
 * Whether a new set pays: if the pages that it adds are expected to save its cost as long as what is
 * known of them lasts, or if the old one has already cost as much, which is never worse than twice
 * the best.
 */
export const isWorth = ({ regretUs, gainUs, missingUs }: Ledger, costUs: number): boolean =>
  missingUs * MEMORY >= costUs || (regretUs >= costUs && gainUs > 0)
