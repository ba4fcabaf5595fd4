import { InvalidArgumentError } from 'commander'
import { parseDuration, parseSize } from '../terminal/units.js'

// How the text of an option becomes its value; commander turns what they throw into a usage error.

const MiB = 2 ** 20

export const duration = (text: string): number => {
  const ms = parseDuration(text)
  if (ms === undefined) throw new InvalidArgumentError('Write it as 2s, 500ms or 1m.')
  return ms
}

export const timeSpan = (text: string): number => {
  const ms = duration(text)
  if (ms === 0) throw new InvalidArgumentError('It must be longer than nothing.')
  return ms
}

export const guestMemory = (text: string): number => {
  const bytes = parseSize(text)
  if (bytes === undefined) throw new InvalidArgumentError('Write it as 256M or 1GiB.')
  if (bytes >= 128 * MiB && bytes <= 2 ** 36 && bytes % (2 * MiB) === 0) return bytes
  throw new InvalidArgumentError('The guest takes 128M to 64G, in steps of 2M.')
}

export const integer =
  (least: number, most: number) =>
  (text: string): number => {
    const number = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (number >= least && number <= most) return number
    throw new InvalidArgumentError(`It must be an integer from ${least} to ${most}.`)
  }

export const path = (text: string): string => {
  if (text === '') throw new InvalidArgumentError('It must not be empty.')
  return text
}

/** For an option that may be given so often. */
export const oneMore =
  (most: number) =>
  (text: string, before: readonly string[]): readonly string[] => {
    if (before.length < most) return [...before, path(text)]
    throw new InvalidArgumentError(`It may be given ${most} times.`)
  }

export const label = (text: string): string => {
  if (text.length > 1024) throw new InvalidArgumentError('It may have 1024 characters.')
  return text
}

export const snapshotId = (text: string): string => label(path(text))

export const socketPath = (text: string): string => {
  if (Buffer.byteLength(path(text)) <= 107) return text
  throw new InvalidArgumentError('The path of a Unix socket has at most 107 bytes.')
}
