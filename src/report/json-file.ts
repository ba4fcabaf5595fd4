import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { ReapTraceError } from '../errors.js'
import { type FileKind, ioError } from '../files.js'
import { type Check, Mismatch } from './shape.js'

/** A full timeline twice, once for other viewers, with much room. */
const MAX_BYTES = 256 * 2 ** 20

/** A kind of record, for the messages of its failures. */
export interface RecordKind {
  /** For failed system calls. */
  readonly file: Extract<FileKind, 'restore record' | 'comparison'>
  /** With its article. */
  readonly name: string
  readonly hint: string
}

export const refusal = (
  { name, hint }: Pick<RecordKind, 'name' | 'hint'>,
  path: string,
  check: string,
  what: string,
  cause?: unknown,
): ReapTraceError =>
  new ReapTraceError('ERR_RECORD_INVALID', `${path} is not ${name}: ${what}`, {
    path,
    check,
    hint,
    cause,
  })

/**
 * Values of a file: that of the whole text as JSON, or that of each line.
 *
 * @throws ReapTraceError `ERR_RECORD_INVALID`, `ERR_RECORD_IO`
 */
export async function readValues(path: string, kind: RecordKind): Promise<readonly unknown[]> {
  const text = await readText(path, kind)
  try {
    try {
      return [JSON.parse(text)]
    } catch (error) {
      const lines = text.split('\n').filter((line) => line.trim() !== '')
      if (lines.length < 2 || !isJson(lines[0]!)) throw error
      return lines.map((line) => JSON.parse(line))
    }
  } catch (cause) {
    const what = `it is not valid JSON (${(cause as Error).message})`
    throw refusal(kind, path, 'json', what, cause)
  }
}

/** @throws ReapTraceError `ERR_RECORD_INVALID`: the value does not pass. */
export function checkShape(check: Check, value: unknown, path: string, kind: RecordKind): void {
  try {
    check(value, '')
  } catch (error) {
    if (!(error instanceof Mismatch)) throw error
    throw refusal(kind, path, error.field, error.message)
  }
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

async function readText(path: string, kind: RecordKind): Promise<string> {
  let file: FileHandle | undefined
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const stats = await file.stat()
    if (!stats.isFile()) throw refusal(kind, path, 'size', 'it is not a regular file')
    if (stats.size > MAX_BYTES) throw refusal(kind, path, 'size', `it has ${stats.size} bytes`)
    return await file.readFile('utf8')
  } catch (error) {
    throw ioError(kind.file, 'read', path, error)
  } finally {
    await file?.close()
  }
}
