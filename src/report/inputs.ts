import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { checkOptions, required, rules } from '../options.js'
import { WorkingSet } from '../working-set/working-set.js'
import { type RestoreRecord, readRestoreRecord } from './record.js'

/** Subject of a report: a working set or a restore, with a name for it on the page. */
export type ReportInput =
  | { readonly name: string; readonly workingSet: WorkingSet }
  | { readonly name: string; readonly restore: RestoreRecord }

/**
 * Reads a file for a report: a working set, or the record of a restore. It only shows pages, so it
 * reads a working set that other users may write to.
 *
 * @throws ReapTraceError as `WorkingSet.read()` or {@link readRestoreRecord}.
 */
export async function readReportInput(path: string): Promise<ReportInput> {
  checkOptions('readReportInput()', { path }, { path: required(rules.path) }, 'argument')
  if (await isJson(path)) return { name: path, restore: await readRestoreRecord(path) }
  return { name: path, workingSet: await WorkingSet.read(path, { trust: true }) }
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
