import type { Comparison } from '../../index.js'
import { type Cache, caches } from '../measure/page-cache.js'
import { cellsOf, headOf, machineLine } from './report.js'
import type { Run } from './rounds.js'

const counters = ['faults', 'lateFaults', 'residualFaults', 'stalledMs'] as const

/** A row for each run, those that are not counted included. */
export function toCsv(runs: readonly Run[]): string {
  const header =
    'cache,round,arm,ms,until,backend,faults,late_faults,residual_faults,stalled_ms,left_out'
  const rows = runs.map(({ cache, round, arm, sample, leftOut }) =>
    [
      ...[cache, round, arm, sample?.ms.toFixed(3), sample?.until, sample?.backend],
      ...counters.map((name) => sample?.stats?.[name]),
      leftOut,
    ]
      .map(csvField)
      .join(','),
  )
  return `${[header, ...rows].join('\n')}\n`
}

/** A field as in RFC 4180. */
function csvField(value: string | number | undefined): string {
  const text = String(value ?? '')
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

/** A table for each state of the page cache. */
export function toMarkdown(report: Comparison): string {
  const tables = caches
    .filter((cache) => report[cache].length > 0)
    .map((cache) => table(cache, report))
  const note = `The ${report.basis}. ${machineLine(report)}.`
  return `${[...tables, note].join('\n\n')}\n`
}

function table(cache: Cache, report: Comparison): string {
  const row = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  const [state, ...head] = headOf(cache, report)
  return [
    row([`${state} page cache`, ...head]),
    '|---|--:|--:|--:|--:|--:|--:|',
    ...report[cache].map((figures) =>
      row(cellsOf(figures).map((cell, i) => (i === 0 ? `\`${cell}\`` : cell))),
    ),
    '',
    report.conclusions[cache].join(' '),
  ].join('\n')
}
