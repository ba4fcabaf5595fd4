import { randomBytes } from 'node:crypto'
import { type FileHandle, open, rename, stat, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ReapTraceError, type ReapTraceErrorCode } from './errors.js'

/**
 * Replaces the file at `path` atomically: `fill` writes a temporary file in the same folder, mode
 * 0600, which is renamed once its data is on the disk. A failure leaves the folder unchanged.
 *
 * @throws ReapTraceError with the code for this kind of file when a system call fails; other
 * exceptions of `fill` as they are.
 */
export async function replaceFile<T>(
  kind: FileKind,
  path: string,
  fill: (file: FileHandle) => Promise<T>,
): Promise<T> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`
  let exists = false
  try {
    const file = await open(temporary, 'wx', 0o600)
    exists = true
    let result: T
    try {
      result = await fill(file)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
    exists = false
    await syncFolder(dirname(path))
    return result
  } catch (error) {
    if (exists) await unlink(temporary).catch(() => {})
    throw ioError(kind, 'write', path, error)
  }
}

/** Makes the rename survive a power failure. */
async function syncFolder(path: string): Promise<void> {
  let folder: FileHandle | undefined
  try {
    folder = await open(path, 'r')
    await folder.sync()
  } catch (error) {
    // The file is in place. EACCES: the folder may not be listed; EINVAL: the file system, such as
    // some FUSE ones, cannot sync folders.
    if (!['EACCES', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  } finally {
    await folder?.close()
  }
}

/** Whether both paths name the same existing file. */
export async function isSameFile(a: string, b: string): Promise<boolean> {
  const [first, second] = await Promise.all(
    [a, b].map((path) => stat(path, { bigint: true }).catch(() => undefined)),
  )
  return first !== undefined && first.dev === second?.dev && first.ino === second.ino
}

/**
 * Fills `bytes` from the file. Returns the number of bytes read, smaller only at the end of the
 * file.
 */
export async function readWhole(
  file: FileHandle,
  bytes: Uint8Array,
  offset: number,
): Promise<number> {
  let done = 0
  while (done < bytes.length) {
    const { bytesRead } = await file.read(bytes, done, bytes.length - done, offset + done)
    if (bytesRead === 0) break
    done += bytesRead
  }
  return done
}

/** Writes all of `bytes`, in as many calls as needed. */
export async function writeWhole(
  file: FileHandle,
  bytes: Uint8Array,
  offset: number,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten
  }
}

/** Kinds of files, and the error codes for their failed system calls. */
const KINDS = {
  'working set': 'ERR_WORKING_SET_IO',
  trace: 'ERR_TRACE_IO',
  calibration: 'ERR_CALIBRATION',
} as const satisfies Record<string, ReapTraceErrorCode>
export type FileKind = keyof typeof KINDS

/**
 * Wraps a failed system call in an error with the code for this kind of file; returns other errors
 * unchanged.
 */
export function ioError(
  kind: FileKind,
  verb: 'read' | 'write',
  path: string,
  error: unknown,
): unknown {
  if (error instanceof ReapTraceError || !(error instanceof Error)) return error
  const { errno, syscall, message } = error as NodeJS.ErrnoException
  if (syscall === undefined) return error
  const details = { path, errno, syscall, cause: error }
  return new ReapTraceError(KINDS[kind], `cannot ${verb} the ${kind} ${path}: ${message}`, details)
}
