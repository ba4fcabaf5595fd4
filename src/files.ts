import { randomBytes } from 'node:crypto'
import {
  type FileHandle,
  lstat,
  mkdir,
  open,
  readlink,
  realpath,
  rename,
  stat,
  unlink,
} from 'node:fs/promises'
import { constants } from 'node:os'
import { dirname, isAbsolute } from 'node:path'
import { getSystemErrorName } from 'node:util'
import { ReapTraceError, type ReapTraceErrorCode } from './errors.js'

/**
 * Replaces the file at `path` atomically: `fill` writes a temporary file in the same folder, mode
 * 0600, which is renamed once its data is on the disk. A failure leaves the folder unchanged. If
 * the path of an output is a symbolic link, the file that it leads to is replaced. Only a file of
 * findings, whose folder is ours alone, takes the place of whatever there is.
 *
 * @throws ReapTraceError with the code for this kind of file when a system call fails; other
 * exceptions of `fill` as they are.
 */
export async function replaceFile<T>(
  kind: FileKind,
  path: string,
  fill: (file: FileHandle) => Promise<T>,
): Promise<T> {
  let temporary = ''
  let exists = false
  try {
    const target = OUTPUTS.has(kind) ? await followLinks(kind, path) : path
    if (kind !== 'file of findings' && !(await isReplaceable(target))) {
      const message = `cannot write the ${kind} ${path}: it is not a regular file`
      const hint = 'Choose the path of a file.'
      throw new ReapTraceError(KINDS[kind], message, { path, check: 'regular-file', hint })
    }
    // Of one length, since the target's name may be as long as a name can be.
    temporary = `${dirname(target)}/reap-trace-${randomBytes(6).toString('hex')}.tmp`
    // Exclusively (O_EXCL), so not through a link either.
    const file = await open(temporary, 'wx', 0o600)
    exists = true
    let result: T
    try {
      result = await fill(file)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, target)
    exists = false
    await syncFolder(dirname(target))
    return result
  } catch (error) {
    if (exists) await unlink(temporary).catch(() => {})
    throw ioError(kind, 'write', path, error)
  }
}

/** Whether a file may take this place: a rename would also remove a device such as /dev/null. */
export async function isReplaceable(path: string): Promise<boolean> {
  const there = await lstat(path).catch(() => undefined)
  return !there || there.isFile() || there.isSymbolicLink()
}

/**
 * Creates the folder and its parents, accessible to their owner alone. Node's `recursive` does not
 * return below /proc, where mkdir gives ENOENT.
 */
export async function makeFolder(path: string): Promise<void> {
  const make = () => mkdir(path, { mode: 0o700 })
  await make().catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT' || dirname(path) === path) throw error
    await makeFolder(dirname(path)).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
    await make()
  })
}

/** Most links that the kernel follows in one path (path_resolution(7)). */
const MAX_LINKS = 40

/**
 * Path of the file that `path` leads to, which need not exist.
 *
 * @throws ReapTraceError `link-owner`: another user put the link there. As the kernel does with
 * `fs.protected_symlinks`, a link in a sticky folder that everybody may write to, such as /tmp, is
 * followed only if it belongs to this user or to the owner of the folder.
 */
async function followLinks(kind: FileKind, path: string): Promise<string> {
  let target = path
  for (let links = 0; links < MAX_LINKS; links++) {
    const link = await lstat(target).catch(() => undefined)
    // open() reports the error of any other path.
    if (!link?.isSymbolicLink()) return target
    const folder = await realpath(dirname(target))
    const { uid, mode } = await stat(folder)
    const isShared = (mode & 0o1002) === 0o1002
    if (isShared && link.uid !== process.geteuid?.() && link.uid !== uid) {
      const message = `cannot write the ${kind} ${path}: it is a symbolic link of uid ${link.uid}`
      const hint = 'Choose a path in a folder that only you can write to.'
      throw new ReapTraceError(KINDS[kind], message, { path, check: 'link-owner', hint })
    }
    const next = await readlink(target)
    // Not by join(), which would drop `..` where the kernel goes up from the end of a link.
    target = isAbsolute(next) ? next : `${folder}/${next}`
  }
  const message = `cannot write the ${kind} ${path}: it is one of too many symbolic links`
  throw new ReapTraceError(KINDS[kind], message, { path, errno: -constants.errno.ELOOP })
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
  'restore record': 'ERR_RECORD_IO',
  comparison: 'ERR_RECORD_IO',
  report: 'ERR_REPORT_IO',
  'file of findings': 'ERR_WORKING_SET_IO',
  'calibration file': 'ERR_CALIBRATION',
  'store file': 'ERR_STORE_IO',
  'exported file': 'ERR_STORE_IO',
} as const satisfies Record<string, ReapTraceErrorCode>
export type FileKind = keyof typeof KINDS

/** Kinds that are written to a path of the user's choice. The others are never links. */
const OUTPUTS: ReadonlySet<FileKind> = new Set([
  'working-set file',
  'trace file',
  'restore record',
  'report',
  'exported file',
])

/** Remedies for a failed system call, by the name of the error. */
export const hints: Readonly<Record<'read' | 'write', Readonly<Record<string, string>>>> = {
  read: {
    ENOENT: 'The file does not exist.',
    EACCES: 'It must be readable by the user of this process.',
    EINVAL: 'It must be a regular file.',
    EISDIR: 'It must be a regular file.',
    ENXIO: 'It must be a regular file.',
    ENODEV: 'Its file system has no mappings that share its page cache: use a fault handler.',
    EIO: 'The disk cannot read it.',
    EMFILE: 'The limit of open files of this process (ulimit -n) is reached.',
  },
  write: {
    ENOENT: 'The folder does not exist.',
    EACCES: 'The folder must be writable by the user of this process.',
    EFBIG: 'The limit of file size is reached: RLIMIT_FSIZE (ulimit -f, LimitFSIZE of systemd).',
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
