import { print } from '../options.js'

/** A field with a wrong value, of a value from a file. */
export class Mismatch extends Error {
  readonly field: string

  constructor(field: string, expected: string, actual: unknown) {
    const got = actual === undefined ? 'it is missing' : `got ${print(actual)}`
    super(`"${field}" should be ${expected}, ${got}`)
    this.field = field
  }
}

/** Throws a {@link Mismatch} for a wrong value of the field. */
export type Check = (value: unknown, field: string) => void

const matching =
  (expected: string, accepts: (value: unknown) => boolean): Check =>
  (value, field) => {
    if (!accepts(value)) throw new Mismatch(field, expected, value)
  }

export const number = matching(
  'a non-negative number',
  (value) => typeof value === 'number' && Number.isFinite(value) && value >= 0,
)
export const count = matching(
  'a non-negative integer',
  (value) => Number.isSafeInteger(value) && (value as number) >= 0,
)
export const boolean = matching('true or false', (value) => typeof value === 'boolean')
export const text = matching('a string', (value) => typeof value === 'string')
export const date = matching(
  'a date in ISO 8601',
  (value) => typeof value === 'string' && !Number.isNaN(Date.parse(value)),
)
export const oneOf = (...values: readonly unknown[]): Check =>
  matching(values.map((value) => JSON.stringify(value)).join(' or '), (value) =>
    values.includes(value),
  )

export const optional =
  (check: Check): Check =>
  (value, field) => {
    if (value !== undefined) check(value, field)
  }

export const nullable =
  (check: Check): Check =>
  (value, field) => {
    if (value !== null) check(value, field)
  }

export const list =
  (check: Check): Check =>
  (value, field) => {
    if (!Array.isArray(value)) throw new Mismatch(field, 'an array', value)
    value.forEach((item, i) => {
      check(item, `${field}[${i}]`)
    })
  }

/** Fields beyond these are left for later versions. */
export const fields =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value, field) => {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new Mismatch(field, 'an object', value)
    }
    for (const [name, check] of Object.entries(checks)) {
      const path = field === '' ? name : `${field}.${name}`
      check((value as Record<string, unknown>)[name], path)
    }
  }
