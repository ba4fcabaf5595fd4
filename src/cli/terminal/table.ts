import type { Terminal } from './terminal.js'

/** Prints a table: the first column on the left, the others on the right. */
export function printTable(
  head: readonly string[],
  rows: readonly (readonly string[])[],
  terminal: Terminal,
): void {
  const widths = head.map((_, i) => Math.max(...[head, ...rows].map((row) => row[i]!.length)))
  const line = (row: readonly string[]) =>
    row
      .map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)))
      .join('  ')
      .trimEnd()
  terminal.print(terminal.style('bold', line(head)))
  for (const row of rows) terminal.print(line(row))
}

/** Cell for what is not known. */
export const UNKNOWN = '–'
