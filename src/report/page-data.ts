import type { WorkingSetSummary } from '../working-set/summary.js'
import type { Comparison } from './comparison.js'
import type { RestoreRecord } from './record.js'

export type { FaultStats } from '../uffd/fault-handler.js'
export type { FaultClass, FaultSpan, FaultWaits, Timeline } from '../uffd/timing.js'
export type { ArmFigures, Comparison, ComparisonRun, Spread } from './comparison.js'
export type { RestoreRecord } from './record.js'

/** A working set, as the page of a report reads it. */
export interface SetEntry {
  readonly kind: 'working-set'
  readonly name: string
  readonly summary: WorkingSetSummary
  /** Pages in first-touch order, in units of the guest's page size. */
  readonly pages: readonly number[]
  readonly timesUs: readonly number[]
}

/** A restore, as the page of a report reads it. */
export interface RestoreEntry {
  readonly kind: 'restore'
  readonly name: string
  readonly record: RestoreRecord
}

/** A comparison, as the page of a report reads it. */
export interface ComparisonEntry {
  readonly kind: 'comparison'
  readonly name: string
  readonly comparison: Comparison
}

export type Entry = SetEntry | RestoreEntry | ComparisonEntry

/** Data of the page of a report: JSON, deflated, in base64. */
export interface PageData {
  readonly entries: readonly Entry[]
}
