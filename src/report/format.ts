// Figures as text, for verdicts and for the page, which runs in a browser.
export { PAGE } from '../page.js'

/** "1,234" */
export const formatCount = (count: number): string => Math.round(count).toLocaleString('en-US')

/** "1 page", "1,234 pages" */
export const formatPlural = (count: number, word: string): string =>
  `${formatCount(count)} ${word}${count === 1 ? '' : 's'}`

/** "18.4 MiB" */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const unit = bytes < 1 ? 0 : Math.min(4, Math.floor(Math.log2(bytes) / 10))
  return `${trim(bytes / 1024 ** unit)} ${units[unit]}`
}

/** "12.3 ms", "1.23 s", "85 µs" */
export function formatMs(ms: number): string {
  if (ms === 0) return '0 ms'
  if (Math.abs(ms) < 1) return `${trim(ms * 1000)} µs`
  if (Math.abs(ms) < 1000) return `${trim(ms)} ms`
  return `${(ms / 1000).toFixed(2)} s`
}

export const formatUs = (us: number): string => formatMs(us / 1000)

/** "1.9 %" of a share between 0 and 1. */
export const formatShare = (share: number): string => `${(100 * share).toFixed(1)} %`

/** "2026-11-27 04:46:54 UTC" of an ISO date. */
export const formatDate = (date: string): string =>
  date.replace(/^(\S+)T(\d\d:\d\d:\d\d)\S*Z$/, '$1 $2 UTC')

export const formatAddress = (bytes: number): string => `0x${bytes.toString(16)}`

/** Three digits, or all digits before the point. */
const trim = (value: number): string =>
  value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(value < 10 ? 2 : 1)
