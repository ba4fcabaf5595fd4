/** A validation rule; `expected` completes the message of a `TypeError`. */
export interface OptionRule {
  readonly expected: string
  readonly accepts: (value: unknown) => boolean
  readonly required?: boolean
}

const MAX_PRINTED = 200

/** A value, as messages name it. */
export const print = (value: unknown): string =>
  typeof value === 'string'
    ? value.length > MAX_PRINTED
      ? `${JSON.stringify(value.slice(0, MAX_PRINTED))}… of ${value.length} characters`
      : JSON.stringify(value)
    : typeof value === 'object' && value !== null
      ? (value.constructor?.name ?? 'an object')
      : String(value)

/** Edit distance, capped at 3. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(row[j]! + 1, next[j - 1]! + 1, change))
    }
    row = next
  }
  return Math.min(row[b.length]!, 3)
}

const list = (words: readonly string[], conjunction: string): string =>
  words.length < 2
    ? words.join('')
    : `${words.slice(0, -1).join(', ')} ${conjunction} ${words.at(-1)}`

const capitalize = (text: string): string => text.replace(/^the /, 'The ')

/**
 * Validates an options object, or another object with named values.
 *
 * @throws TypeError naming the option, the expected and the actual value; for an unknown option,
 * the most similar known one.
 */
export function checkOptions(
  caller: string,
  options: unknown,
  rules: Readonly<Record<string, OptionRule>>,
  kind: 'option' | 'field' | 'argument' = 'option',
): void {
  if (typeof options !== 'object' || options === null || Array.isArray(options)) {
    const names = Object.keys(rules).filter((name) => rules[name]!.required)
    const expected =
      kind === 'option' ? 'an options object' : `an object with ${list(names, 'and')}`
    throw new TypeError(`${capitalize(caller)} expects ${expected}, got ${print(options)}`)
  }
  const given = options as Record<string, unknown>
  for (const key of Object.keys(given)) {
    if (Object.hasOwn(rules, key)) continue
    const [near] = Object.keys(rules)
      .map((name) => ({ name, letters: distance(key.toLowerCase(), name.toLowerCase()) }))
      .filter(({ letters }) => letters < 3)
      .sort((a, b) => a.letters - b.letters)
    const remedy = near ? `did you mean "${near.name}"?` : `it has ${Object.keys(rules).join(', ')}`
    throw new TypeError(`${capitalize(caller)} has no ${kind} "${key}": ${remedy}`)
  }
  for (const [key, rule] of Object.entries(rules)) {
    const value = given[key]
    if (value === undefined ? !rule.required : rule.accepts(value)) continue
    throw new TypeError(
      `Expected the ${kind} "${key}" of ${caller} to be ${rule.expected}, got ${print(value)}`,
    )
  }
}

const isPath = (value: unknown): boolean =>
  typeof value === 'string' && value !== '' && !value.includes('\0')

/** Rules shared by several functions. */
export const rules = {
  path: {
    expected: 'a non-empty path',
    accepts: isPath,
  },
  socketPath: {
    expected: 'a non-empty path of at most 107 bytes',
    accepts: (value) => isPath(value) && Buffer.byteLength(`${value}`) <= 107,
  },
  boolean: { expected: 'a boolean', accepts: (value) => typeof value === 'boolean' },
  count: {
    expected: 'a non-negative integer',
    accepts: (value) => Number.isSafeInteger(value) && (value as number) >= 0,
  },
  milliseconds: {
    expected: 'a non-negative integer of milliseconds, at most 2147483647',
    accepts: (value) =>
      Number.isInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 31,
  },
  name: {
    expected: 'a string of 1 to 1024 characters',
    accepts: (value) => typeof value === 'string' && value !== '' && value.length <= 1024,
  },
  callback: { expected: 'a function', accepts: (value) => typeof value === 'function' },
  signal: { expected: 'an AbortSignal', accepts: (value) => value instanceof AbortSignal },
} as const satisfies Record<string, OptionRule>

/** A rule that accepts any of these words. */
export const oneOf = (...words: readonly string[]): OptionRule => ({
  expected: list(
    words.map((word) => `"${word}"`),
    'or',
  ),
  accepts: (value) => words.includes(value as string),
})

/** The same rule for a mandatory option. */
export const required = (rule: OptionRule): OptionRule => ({ ...rule, required: true })
