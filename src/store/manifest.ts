import { checkOptions, type OptionRule, required, rules } from '../options.js'
import type { MeanTime, ResponseTimes } from '../restore/backend.js'
import { invalidFile } from './invalid.js'

/** A working-set file of a snapshot. */
export interface StoredSet {
  /** `null` for the common set. */
  readonly variant: string | null
  /** Name of the file in the snapshot's folder. */
  readonly file: string
  readonly pageCount: number
  /** ISO 8601, UTC. */
  readonly writtenAt: string
}

/** Content of `snapshot.json`. */
export interface SnapshotManifest {
  readonly version: 1
  /** Absolute path of the memory file at the last restore. */
  readonly memoryFile: string
  readonly id?: string | undefined
  readonly memoryBytes: number
  readonly pageSize: number
  /** Key of the parent snapshot. */
  readonly parent?: string | undefined
  readonly createdAt: string
  readonly lastRestoreAt: string
  /** Number of restores that taught something. */
  readonly restoreCount: number
  readonly sets: readonly StoredSet[]
  /** Mean responses of earlier restores on this host. */
  readonly responses: ResponseTimes
}

const list: OptionRule = { expected: 'an array', accepts: Array.isArray }
const object: OptionRule = {
  expected: 'an object',
  accepts: (value) => typeof value === 'object' && value !== null,
}
const number: OptionRule = {
  expected: 'a number of at least 0',
  accepts: (value) => Number.isFinite(value) && (value as number) >= 0,
}
const date: OptionRule = {
  expected: 'a date in ISO 8601',
  accepts: (value) => typeof value === 'string' && !Number.isNaN(Date.parse(value)),
}

const manifestRules: Record<keyof SnapshotManifest, OptionRule> = {
  version: required({ expected: '1', accepts: (value) => value === 1 }),
  memoryFile: required(rules.path),
  id: rules.name,
  memoryBytes: required(rules.count),
  pageSize: required({
    expected: '4096 or 2097152',
    accepts: (value) => value === 4096 || value === 2097152,
  }),
  parent: rules.name,
  createdAt: required(date),
  lastRestoreAt: required(date),
  restoreCount: required(rules.count),
  sets: required(list),
  responses: required(object),
}

const setRules: Record<keyof StoredSet, OptionRule> = {
  variant: {
    expected: 'a string or null',
    accepts: (value) => value === null || typeof value === 'string',
  },
  file: required({
    expected: 'the name of a working-set file',
    accepts: (value) => /^(common|variant-[0-9a-f]{16})\.ws$/.test(`${value}`),
  }),
  pageCount: required(rules.count),
  writtenAt: required(date),
}

const meanRules = { ms: required(number), weight: required(number) }

/** @throws ReapTraceError `ERR_STORE_INVALID`. */
export function checkManifest(path: string, bytes: Buffer): SnapshotManifest {
  try {
    const value = JSON.parse(bytes.toString('utf8')) as SnapshotManifest
    checkOptions('the manifest', value, manifestRules, 'field')
    for (const set of value.sets) checkOptions('a set', set, setRules, 'field')
    for (const way of ['uffd', 'page-cache'] as const) {
      for (const state of ['warm', 'cold'] as const) {
        checkOptions('a response', value.responses[way]?.[state], meanRules, 'field')
      }
    }
    return value
  } catch (error) {
    throw invalidFile(path, 'manifest', (error as Error).message)
  }
}

export const noResponses: ResponseTimes = {
  uffd: { warm: { ms: 0, weight: 0 }, cold: { ms: 0, weight: 0 } },
  'page-cache': { warm: { ms: 0, weight: 0 }, cold: { ms: 0, weight: 0 } },
}

/** Half-life of the responses, in restores. */
const HALF_LIFE = 16

/** A mean with one more value. */
export function withValue({ ms, weight }: MeanTime, value: number): MeanTime {
  const old = weight * 2 ** (-1 / HALF_LIFE)
  return { ms: (ms * old + value) / (old + 1), weight: old + 1 }
}
