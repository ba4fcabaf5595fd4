import { type RestoreRecord, writeRestoreRecord } from '../../index.js'
import type { Terminal } from '../terminal/terminal.js'

/** Writes the file of `--trace`. */
export async function writeTrace(
  path: string,
  record: Omit<RestoreRecord, 'version' | 'date'>,
  terminal: Terminal,
): Promise<void> {
  await writeRestoreRecord(path, { version: 1, date: new Date().toISOString(), ...record })
  terminal.emit({ type: 'traced', path })
  terminal.print(`wrote ${path}: open it at ui.perfetto.dev, or draw it with "reap-trace report"`)
}
