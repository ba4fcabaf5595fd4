import type { NativeWorkingSet } from '../binding/addon.js'
import type { DiskFacts } from './disks.js'
import type { WorkingSetFile } from './file/facts.js'

/** What a working set has for the rest of the package, and not for its users. */
export interface SetInternals {
  /** The engine's side of the set. */
  readonly handle: NativeWorkingSet
  /** `undefined` for a set that is not from a file. */
  readonly file: WorkingSetFile | undefined
  readonly disks: readonly DiskFacts[]
  /**
   * Pairs of a page and microseconds: those of the first disk in the order of their times, then those
   * of the second, …
   */
  readonly diskTouches: Uint32Array
}

const internals = new WeakMap<object, SetInternals>()

export const internalsOf = (set: object): SetInternals => internals.get(set)!

export function setInternals(set: object, its: SetInternals): void {
  internals.set(set, its)
}
