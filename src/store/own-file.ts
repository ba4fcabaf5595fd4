import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { ioError, makeFolder, replaceFile, writeWhole } from '../files.js'

/** @throws ReapTraceError `ERR_UNTRUSTED_FILE` if another user may write to the open file. */
export function checkWriters(fd: number, path: string): void {
  const failure = native().checkWriters(fd)
  if (failure) throw toError(failure, { storePath: path })
}

/** Creates a folder, mode 0700, unless it exists. */
export async function ensureFolder(path: string): Promise<void> {
  await makeFolder(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
}

/** @throws ReapTraceError `ERR_UNTRUSTED_FILE` if another user may write to the folder. */
export async function checkFolder(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    checkWriters(handle.fd, path)
  } finally {
    await handle.close()
  }
}

/** Content of folder/name; `undefined` if it does not exist. Links are not followed. */
export async function readOwn(folder: string, name: string): Promise<Buffer | undefined> {
  const path = join(folder, name)
  let file: FileHandle | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOFOLLOW)
    checkWriters(file.fd, path)
    return await file.readFile()
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw ioError('store file', 'read', path, error)
  } finally {
    await file?.close()
  }
}

/**
 * Content of a file of `export()`, which may be anywhere.
 *
 * @throws ReapTraceError `ERR_STORE_IO`, or `ERR_UNTRUSTED_FILE` if another user may write to it.
 */
export async function readExport(path: string, isTrusted: boolean): Promise<Buffer> {
  let file: FileHandle | undefined
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const failure = isTrusted ? null : native().checkWriters(file.fd)
    if (failure) throw toError(failure, { exportPath: path })
    return await file.readFile()
  } catch (error) {
    throw ioError('exported file', 'read', path, error)
  } finally {
    await file?.close()
  }
}

/** Replaces folder/name whole, mode 0600. */
export const writeOwn = (folder: string, name: string, bytes: Uint8Array): Promise<void> =>
  replaceFile('store file', join(folder, name), (file) => writeWhole(file, bytes, 0))
