/** Size of the pages that the command line counts, in bytes. */
export const PAGE = 4096

const durations: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
const sizes: Readonly<Record<string, number>> = {
  '': 1,
  K: 2 ** 10,
  M: 2 ** 20,
  G: 2 ** 30,
  T: 2 ** 40,
}

/** Milliseconds of "2s", "500ms", "1.5m"; `undefined` for anything else. */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/.exec(text)
  if (!match) return undefined
  const ms = Math.round(Number(match[1]) * durations[match[2]!]!)
  // Maximum delay of a timer.
  return ms < 2 ** 31 ? ms : undefined
}

/** Bytes of "256M", "1GiB", "1.5G", "4096"; K, M, G and T are powers of 1024. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)(?:([KMGT])(?:iB)?)?$/.exec(text)
  if (!match) return undefined
  const bytes = Number(match[1]) * sizes[match[2] ?? '']!
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** "1,234" */
export const formatCount = (count: number): string => Math.round(count).toLocaleString('en-US')

/** "1 page", "1,234 pages" */
export const formatPlural = (count: number, word: string): string =>
  `${formatCount(count)} ${word}${count === 1 ? '' : 's'}`

/** "18.4 MiB" */
export function formatBytes(bytes: number): string {
  let value = bytes
  for (const unit of ['B', 'KiB', 'MiB', 'GiB']) {
    if (value < 1024) return `${trim(value)} ${unit}`
    value /= 1024
  }
  return `${trim(value)} TiB`
}

/** "12.3 ms", "1.23 s" */
export function formatMs(ms: number): string {
  if (ms < 1000) return `${ms.toFixed(ms < 100 ? 1 : 0)} ms`
  return ms < 100_000 ? `${(ms / 1000).toFixed(2)} s` : `${formatCount(ms / 1000)} s`
}

const ages = [
  [86_400_000, 'day'],
  [3_600_000, 'hour'],
  [60_000, 'minute'],
  [1000, 'second'],
] as const

/** "3 minutes" since a date in ISO 8601; "0 seconds" for one to come. */
export function formatAge(date: string, nowMs = Date.now()): string {
  const ms = Math.max(0, nowMs - Date.parse(date))
  const [unit, name] = ages.find(([unit]) => ms >= unit) ?? ages[3]
  return formatPlural(Math.floor(ms / unit), name)
}

/** "1.9 %" of a share between 0 and 1. */
export const formatShare = (share: number): string => `${(100 * share).toFixed(1)} %`

const trim = (value: number): string =>
  Number.isInteger(value) || value >= 100 ? value.toFixed(0) : value.toFixed(1)
