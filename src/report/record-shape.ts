import {
  boolean,
  type Check,
  count,
  date,
  fields,
  list,
  Mismatch,
  number,
  oneOf,
  optional,
  text,
} from './shape.js'

/** A span: fields of which `to` is not before `from`. */
const span =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value, field) => {
    fields({ from: number, to: number, ...checks })(value, field)
    const { from, to } = value as { from: number; to: number }
    if (to < from) throw new Mismatch(`${field}.to`, `at least ${from}, its "from"`, to)
  }

const faultClass = oneOf('on-demand', 'late', 'residual')

const bucket: Check = (value, field) => {
  list(number)(value, field)
  if ((value as unknown[]).length !== 2) throw new Mismatch(field, 'a limit and a count', value)
}

const waits = fields({ count, totalUs: number, maxUs: number, buckets: list(bucket) })

export const stats = fields({
  faults: count,
  lateFaults: count,
  residualFaults: count,
  installed: count,
  zero: count,
  prefetched: count,
  installedAhead: count,
  present: count,
  deferred: count,
  discarded: count,
  removed: count,
  bytesRead: count,
  prefetch: fields({
    fetchMs: number,
    diskMs: number,
    diskBytes: count,
    installMs: number,
    installCpuMs: number,
  }),
  stalledMs: number,
  waits: fields({ 'on-demand': waits, late: waits, residual: waits }),
  slowest: list(fields({ offset: count, class: faultClass, waitUs: number })),
})

const times = fields({
  started: number,
  listening: optional(number),
  accepted: optional(number),
  connected: optional(number),
  firstFetch: optional(number),
  firstInstall: optional(number),
  firstFault: optional(number),
  prefetched: optional(number),
  ready: optional(number),
  closed: optional(number),
  commandStarted: optional(number),
  commandEnded: optional(number),
})

const timeline = fields({
  fetches: list(span({ bytes: count, waited: boolean, thread: count })),
  installs: list(span({ bytes: count, thread: count })),
  faults: list(span({ class: faultClass, offset: count })),
  removals: list(fields({ at: number, offset: count, bytes: count })),
  missing: count,
})

/** Throws a `Mismatch` for the first field that makes the value no record of a restore. */
export const checkRecord: Check = fields({
  version: oneOf(1),
  date,
  backend: oneOf('uffd', 'page-cache'),
  snapshot: fields({
    memoryFile: text,
    memoryBytes: count,
    pageSize: oneOf(4096, 2097152),
  }),
  workingSet: optional(fields({ path: text, pageCount: count })),
  times,
  prefetch: optional(
    fields({ pageCount: count, extentCount: count, bytes: count, complete: boolean }),
  ),
  stats: optional(stats),
  statsAtReady: optional(stats),
  timeline: optional(timeline),
  state: optional(oneOf('closed', 'vm-exited', 'vm-killed', 'vm-left', 'detached')),
  automatic: optional(fields({ backend: oneOf('uffd', 'page-cache'), reason: text })),
  verdict: optional(fields({ kind: text, sentence: text, remedy: optional(text) })),
})

/** The same for the file with the record. */
export const checkFile: Check = (value) =>
  checkRecord((value as { reapTrace?: unknown }).reapTrace, 'reapTrace')
