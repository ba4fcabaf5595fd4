import { InvalidArgumentError } from 'commander'
import { type Arm, arms } from '../compare/arms.js'
import { parseDuration, parseSize } from '../terminal/units.js'

// Parsers of option values; commander turns their exceptions into usage errors.

const MiB = 2 ** 20

export const duration = (text: string): number => {
  const ms = parseDuration(text)
  if (ms === undefined) throw new InvalidArgumentError('Write it as 2s, 500ms or 1m.')
  return ms
}

export const timeSpan = (text: string): number => {
  const ms = duration(text)
  if (ms === 0) throw new InvalidArgumentError('It must be longer than 0.')
  return ms
}

export const guestMemory = (text: string): number => {
  const bytes = parseSize(text)
  if (bytes === undefined) throw new InvalidArgumentError('Write it as 256M or 1GiB.')
  if (bytes >= 128 * MiB && bytes <= 2 ** 36 && bytes % (2 * MiB) === 0) return bytes
  throw new InvalidArgumentError('The guest can have 128M to 64G, in steps of 2M.')
}

export const integer =
  (min: number, max: number) =>
  (text: string): number => {
    const number = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (number >= min && number <= max) return number
    throw new InvalidArgumentError(`It must be an integer from ${min} to ${max}.`)
  }

export const path = (text: string): string => {
  if (text === '') throw new InvalidArgumentError('It must not be empty.')
  return text
}

/** Collects the values of an option that may be given at most `max` times. */
export const collect =
  (max: number) =>
  (text: string, before: readonly string[] = []): readonly string[] => {
    if (before.length < max) return [...before, path(text)]
    throw new InvalidArgumentError(`It may be given at most ${max} times.`)
  }

/** Names of arms, without repetitions, in their usual order. */
export const armList = (text: string): readonly Arm[] => {
  const names = new Set(text.split(','))
  const known = arms.filter((arm) => names.has(arm))
  if (known.length === names.size) return known
  throw new InvalidArgumentError(`It must be a list of ${arms.join(', ')}.`)
}

export const label = (text: string): string => {
  if (text.length > 1024) throw new InvalidArgumentError('It may have at most 1024 characters.')
  return text
}

export const snapshotId = (text: string): string => label(path(text))

export const snapshotKey = (text: string): string => {
  if (/^[0-9a-f]{16}$/.test(text)) return text
  throw new InvalidArgumentError('A key has 16 hexadecimal digits: see "reap-trace store ls".')
}

export const socketPath = (text: string): string => {
  if (Buffer.byteLength(path(text)) <= 107) return text
  throw new InvalidArgumentError('The path of a Unix socket has at most 107 bytes.')
}
