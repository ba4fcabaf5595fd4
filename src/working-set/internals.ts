import type { NativeWorkingSet } from '../binding/addon.js'
import type { DiskFacts } from './disks.js'
import type { WorkingSetFile } from './file/facts.js'

/** Package-internal fields of a working set. */
export interface SetInternals {
  /** The native tables of the set. */
  readonly handle: NativeWorkingSet
  /** `undefined` for a set without a file. */
  readonly file: WorkingSetFile | undefined
  readonly disks: readonly DiskFacts[]
  /**
   * Pairs of a page and its time in microseconds: those of the first disk, sorted by time, then
   * those of the second, and so on.
   */
  readonly diskTouches: Uint32Array
}

const internals = new WeakMap<object, SetInternals>()

export const internalsOf = (set: object): SetInternals => internals.get(set)!

export const isWorkingSet = (value: unknown): boolean => internals.has(value as object)

export function setInternals(set: object, its: SetInternals): void {
  internals.set(set, its)
}
