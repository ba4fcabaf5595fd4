import { print } from '../options.js'

/** A field of a record with a wrong value. */
export class Mismatch extends Error {
  readonly field: string

  constructor(field: string, expected: string, actual: unknown) {
    const got = actual === undefined ? 'it is missing' : `got ${print(actual)}`
    super(`"${field}" should be ${expected}, ${got}`)
    this.field = field
  }
}

/** Throws a {@link Mismatch} for a wrong value of the field. */
type Check = (value: unknown, field: string) => void

const matching =
  (expected: string, accepts: (value: unknown) => boolean): Check =>
  (value, field) => {
    if (!accepts(value)) throw new Mismatch(field, expected, value)
  }

const number = matching(
  'a non-negative number',
  (value) => typeof value === 'number' && Number.isFinite(value) && value >= 0,
)
const count = matching(
  'a non-negative integer',
  (value) => Number.isSafeInteger(value) && (value as number) >= 0,
)
const boolean = matching('true or false', (value) => typeof value === 'boolean')
const text = matching('a string', (value) => typeof value === 'string')
const date = matching(
  'a date in ISO 8601',
  (value) => typeof value === 'string' && !Number.isNaN(Date.parse(value)),
)
const oneOf = (...values: readonly unknown[]): Check =>
  matching(values.map((value) => JSON.stringify(value)).join(' or '), (value) =>
    values.includes(value),
  )

const optional =
  (check: Check): Check =>
  (value, field) => {
    if (value !== undefined) check(value, field)
  }

const list =
  (check: Check): Check =>
  (value, field) => {
    if (!Array.isArray(value)) throw new Mismatch(field, 'an array', value)
    value.forEach((item, i) => {
      check(item, `${field}[${i}]`)
    })
  }

/** Fields beyond these are left for later versions. */
const fields =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value, field) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new Mismatch(field, 'an object', value)
    }
    for (const [name, check] of Object.entries(checks)) {
      check((value as Record<string, unknown>)[name], `${field}.${name}`)
    }
  }

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

const stats = fields({
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

const record = fields({
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
  verdict: optional(fields({ kind: text, sentence: text, remedy: optional(text) })),
})

/** @throws Mismatch for the first field that makes the value no record of a restore. */
export const checkRecord = (value: unknown): void => record(value, 'reapTrace')
