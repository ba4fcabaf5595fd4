import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { checkOptions, required, rules } from '../options.js'
import { WorkingSet } from '../working-set/working-set.js'
import { type Comparison, comparisonIn, isComparison } from './comparison.js'
import { type RecordKind, readValues, refusal } from './json-file.js'
import { isRecordFile, type RestoreRecord, recordIn } from './record.js'

/** Subject of a report: a working set, a restore or a comparison, with a name for it on the page. */
export type ReportInput =
  | { readonly name: string; readonly workingSet: WorkingSet }
  | { readonly name: string; readonly restore: RestoreRecord }
  | { readonly name: string; readonly comparison: Comparison }

const kind: RecordKind = {
  file: 'restore record',
  name: 'a subject of a report',
  hint: 'Write one with "reap-trace record", "reap-trace restore --trace FILE", or "reap-trace compare … --json >FILE".',
}

/**
 * Reads a file for a report: a working set, the record of a restore, or a comparison. It only shows
 * pages, so it reads a working set that other users may write to.
 *
 * @throws ReapTraceError as `WorkingSet.read()`, {@link readRestoreRecord} or
 * {@link readComparison}; `ERR_RECORD_INVALID` for JSON of another kind.
 */
export async function readReportInput(path: string): Promise<ReportInput> {
  checkOptions('readReportInput()', { path }, { path: required(rules.path) }, 'argument')
  if (!(await isJson(path))) {
    return { name: path, workingSet: await WorkingSet.read(path, { trust: true }) }
  }
  const values = await readValues(path, kind)
  if (values.some(isComparison)) return { name: path, comparison: comparisonIn(values, path) }
  if (values.some(isRecordFile)) return { name: path, restore: recordIn(values, path) }
  const what = 'it has neither a key "reapTrace" nor the type "comparison"'
  throw refusal(kind, path, 'kind', what)
}

/** Whether the file begins as a JSON object does; false for one that cannot be read. */
async function isJson(path: string): Promise<boolean> {
  try {
    await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const { buffer, bytesRead } = await file.read(Buffer.alloc(64), 0, 64, 0)
    return buffer.toString('latin1', 0, bytesRead).trimStart().startsWith('{')
  } catch {
    return false
  }
}
