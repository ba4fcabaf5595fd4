import { randomBytes } from 'node:crypto'
import { type FileHandle, open, rename, stat, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { getSystemErrorName } from 'node:util'
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
  'working-set file': 'ERR_WORKING_SET_IO',
  'trace file': 'ERR_TRACE_IO',
  'calibration file': 'ERR_CALIBRATION',
} as const satisfies Record<string, ReapTraceErrorCode>
export type FileKind = keyof typeof KINDS

/** Remedies for a failed system call, by the name of the error. */
export const hints: Readonly<Record<'read' | 'write', Readonly<Record<string, string>>>> = {
  read: {
    ENOENT: 'The file does not exist.',
    EACCES: 'It must be readable by the user of this process.',
    EINVAL: 'It must be a regular file.',
    EISDIR: 'It must be a regular file.',
    EIO: 'The disk cannot read it.',
  },
  write: {
    ENOENT: 'The folder does not exist.',
    EACCES: 'The folder must be writable by the user of this process.',
    ENOSPC: 'The file system is full.',
    EROFS: 'The file system is read-only.',
  },
}

/**
 * Description of a failed system call, in the style of the engine's failures. Not Node's message,
 * which may name a temporary file.
 */
export function describeCall(
  { syscall, errno = 0 }: NodeJS.ErrnoException,
  verb: 'read' | 'write',
): { readonly cause: string; readonly hint: string | undefined } {
  const name = getSystemErrorName(errno)
  return { cause: `${syscall} failed with ${name}`, hint: hints[verb][name] }
}

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
  const { errno, syscall } = error as NodeJS.ErrnoException
  if (syscall === undefined) return error
  const { cause, hint } = describeCall(error, verb)
  const details = { path, errno, syscall, hint, cause: error }
  return new ReapTraceError(KINDS[kind], `cannot ${verb} the ${kind} ${path}: ${cause}`, details)
}
