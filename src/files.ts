import { randomBytes } from 'node:crypto'
import { type FileHandle, open, rename, stat, unlink } from 'node:fs/promises'
import { dirname } from 'node:path'
import { ReapTraceError, type ReapTraceErrorCode } from './errors.js'

/**
 * Makes the file at `path` anew: `fill` writes it under another name in the same folder, and it takes
 * its place, mode 0600, only when all of it is on the disk. On any failure the folder is as it was.
 *
 * @throws ReapTraceError with the code for this kind of file, for a failed system call; what `fill` throws
 * otherwise.
 */
export async function replaceFile<T>(
  kind: FileKind,
  path: string,
  fill: (file: FileHandle) => Promise<T>,
): Promise<T> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`
  let made = false
  try {
    const file = await open(temporary, 'wx', 0o600)
    made = true
    let result: T
    try {
      result = await fill(file)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
    made = false
    await syncFolder(dirname(path))
    return result
  } catch (error) {
    if (made) await unlink(temporary).catch(() => {})
    throw ioError(kind, 'write', path, error)
  }
}

/** Makes the new name last over a power failure. */
async function syncFolder(path: string): Promise<void> {
  let folder: FileHandle | undefined
  try {
    folder = await open(path, 'r')
    await folder.sync()
  } catch (error) {
    // The file is in place. EACCES: a folder that may not be listed; EINVAL: a file system without
    // that notion, as some FUSE ones.
    if (!['EACCES', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  } finally {
    await folder?.close()
  }
}

/** Whether both paths name one file that is there. */
export async function isSameFile(a: string, b: string): Promise<boolean> {
  const look = (path: string) => stat(path, { bigint: true }).catch(() => undefined)
  const [one, other] = [await look(a), await look(b)]
  return one !== undefined && one.dev === other?.dev && one.ino === other.ino
}

/** Fills `bytes` from the file. Returns the number of bytes read: fewer only where the file ends. */
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

/** Writes all of `bytes`, in as many calls as that takes. */
export async function writeWhole(
  file: FileHandle,
  bytes: Uint8Array,
  offset: number,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten
  }
}

/** Names of what a file holds, and the codes of failed system calls. */
const KINDS = {
  'working set': 'ERR_WORKING_SET_IO',
  trace: 'ERR_TRACE_IO',
  calibration: 'ERR_CALIBRATION',
} as const satisfies Record<string, ReapTraceErrorCode>
export type FileKind = keyof typeof KINDS

/** A failed system call as an error with the code for this kind of file; anything else as it is. */
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
