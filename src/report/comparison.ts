import { checkOptions, required, rules } from '../options.js'
import type { FaultStats } from '../uffd/fault-handler.js'
import { checkComparison } from './comparison-shape.js'
import { checkShape, type RecordKind, readValues, refusal } from './json-file.js'

/** Median with its quartiles. */
export interface Spread {
  readonly median: number
  readonly p25: number
  readonly p75: number
  /** Number of values. */
  readonly samples: number
}

/** Figures of one arm, a way to restore, in one state of the page cache. */
export interface ArmFigures {
  /** `kernel-file`, `on-demand`, `page-cache`, `working-set` or `auto`. */
  readonly arm: string
  /** Times in milliseconds. */
  readonly ms: Spread
  /** Time divided by that of the base in the same round; null for the base. */
  readonly ratio: Spread | null
  /** Medians of figures of the handler; null without one. */
  readonly faults: number | null
  readonly lateFaults: number | null
  readonly residualFaults: number | null
  readonly stalledMs: number | null
  /** Number of runs by the backend that `auto` chose; null for other arms. */
  readonly chosen: Readonly<Record<string, number>> | null
  readonly outlierCount: number
  /** Number of runs that are not counted. */
  readonly leftOutCount: number
}

/** One restore of a comparison. */
export interface ComparisonRun {
  readonly arm: string
  readonly cache: 'cold' | 'warm'
  /** Number of its round, from 1. */
  readonly round: number
  /** Absent if the restore failed. */
  readonly sample?:
    | {
        /** Time from the restore request to the mark or the end of the command, in milliseconds. */
        readonly ms: number
        readonly until: 'ready' | 'end'
        readonly backend: 'kernel-file' | 'uffd' | 'page-cache'
        /** Figures at that time; absent without a handler. */
        readonly stats?: FaultStats | undefined
      }
    | undefined
  /** Reason for not counting it; absent if it counts. */
  readonly leftOut?: string | undefined
  /** Whether its time is far from those of the other rounds. */
  readonly isOutlier: boolean
}

/** Result of `reap-trace compare`, as its `--json` prints it. */
export interface Comparison {
  readonly type: 'comparison'
  /** Date and time of its end: ISO 8601, UTC. */
  readonly date: string
  /** Whether all rounds were measured. */
  readonly complete: boolean
  readonly command: readonly string[]
  readonly memoryFile: string
  readonly workingSet: string
  readonly rounds: number
  readonly seed: number
  /** Arm to which the ratios of the others are; null without a counted run. */
  readonly base: string | null
  readonly cold: readonly ArmFigures[]
  readonly warm: readonly ArmFigures[]
  /** Kind of the figures, and the end of their times, in words. */
  readonly basis: string
  /** Conclusions from the figures, in sentences. */
  readonly conclusions: {
    readonly cold: readonly string[]
    readonly warm: readonly string[]
  }
  readonly warnings: readonly string[]
  readonly runs: readonly ComparisonRun[]
  readonly kernel: string
  readonly cpu: string
  readonly cpus: number
  readonly node: string
}

const kind: RecordKind = {
  file: 'comparison',
  name: 'a comparison',
  hint: 'Write one with "reap-trace compare … --json >FILE".',
}

/** Whether a value claims to be a comparison. */
export const isComparison = (value: unknown): boolean =>
  (value as { type?: unknown } | null)?.type === 'comparison'

/**
 * Reads the output of `reap-trace compare --json`: of its objects the comparison, of several
 * comparisons the last.
 *
 * @throws ReapTraceError
 * - `ERR_RECORD_INVALID`: it is no such file, or a field has a wrong value; `check` names it,
 * - `ERR_RECORD_IO`: the file cannot be opened or read.
 */
export async function readComparison(path: string): Promise<Comparison> {
  checkOptions('readComparison()', { path }, { path: required(rules.path) }, 'argument')
  return comparisonIn(await readValues(path, kind), path)
}

/** The comparison among the values of a file. */
export function comparisonIn(values: readonly unknown[], path: string): Comparison {
  const value = values.findLast(isComparison)
  if (value === undefined) throw refusal(kind, path, 'type', 'no object has the type "comparison"')
  checkShape(checkComparison, value, path, kind)
  return value as Comparison
}
