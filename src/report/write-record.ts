import { replaceFile, writeWhole } from '../files.js'
import { checkOptions, required, rules } from '../options.js'
import { traceEventsOf } from './chrome-trace.js'
import type { RestoreRecord } from './record.js'

/**
 * Writes the record of a restore to a file, mode 0600, replacing an existing one atomically. The
 * file is also a trace that ui.perfetto.dev opens.
 *
 * @throws ReapTraceError `ERR_RECORD_IO`: the file cannot be written.
 */
export async function writeRestoreRecord(path: string, record: RestoreRecord): Promise<void> {
  checkOptions('writeRestoreRecord()', { path }, { path: required(rules.path) }, 'argument')
  const file = { displayTimeUnit: 'ms', traceEvents: traceEventsOf(record), reapTrace: record }
  const bytes = Buffer.from(`${JSON.stringify(file)}\n`)
  await replaceFile('restore record', path, (handle) => writeWhole(handle, bytes, 0))
}
