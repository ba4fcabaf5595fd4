import { stats } from './record-shape.js'
import {
  boolean,
  type Check,
  count,
  date,
  fields,
  list,
  nullable,
  number,
  oneOf,
  optional,
  text,
} from './shape.js'

const spread = fields({ median: number, p25: number, p75: number, samples: count })

const figures = list(
  fields({
    arm: text,
    ms: spread,
    ratio: nullable(spread),
    faults: nullable(number),
    lateFaults: nullable(number),
    residualFaults: nullable(number),
    stalledMs: nullable(number),
    chosen: nullable(fields({})),
    outlierCount: count,
    leftOutCount: count,
  }),
)

const run = fields({
  arm: text,
  cache: oneOf('cold', 'warm'),
  round: count,
  sample: optional(
    fields({ ms: number, until: oneOf('ready', 'end'), backend: text, stats: optional(stats) }),
  ),
  leftOut: optional(text),
  isOutlier: boolean,
})

/** Throws a `Mismatch` for the first field that makes the value no comparison. */
export const checkComparison: Check = fields({
  type: oneOf('comparison'),
  // Not in objects of programs.
  formatVersion: optional(oneOf(1)),
  date,
  complete: boolean,
  command: list(text),
  memoryFile: text,
  workingSet: text,
  rounds: count,
  seed: count,
  base: nullable(text),
  cold: figures,
  warm: figures,
  basis: text,
  conclusions: fields({ cold: list(text), warm: list(text) }),
  warnings: list(text),
  runs: list(run),
  kernel: text,
  cpu: text,
  cpus: count,
  node: text,
})
