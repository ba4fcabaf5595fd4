import { readdir, unlink } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { ReapTraceError } from '../errors.js'
import { describeCall, ioError } from '../files.js'
import { checkFolder, ensureFolder, readOwn, writeOwn } from './own-file.js'
import { SnapshotFolder } from './snapshot-folder.js'
import { digest, isSnapshotKey, type SnapshotKey } from './snapshot-key.js'

const MARKER = 'store.json'
const VERSION = 1

/** Opens the folder of a store, and creates it unless it is read-only. */
export async function openFolder(path: string, readOnly: boolean): Promise<StoreFolder> {
  const folder = new StoreFolder(resolve(path))
  try {
    if (!readOnly) await ensureFolder(folder.path)
    await checkFolder(folder.path)
    const marker = await readOwn(folder.path, MARKER)
    if (marker) {
      checkMarker(join(folder.path, MARKER), marker)
    } else {
      const others = await readdir(folder.path)
      if (
        readOnly ||
        others.some((name) => !['snapshots', 'paths'].includes(name) && !name.endsWith('.tmp'))
      ) {
        throw notAStore(folder.path, readOnly)
      }
      await writeOwn(folder.path, MARKER, Buffer.from(`{ "reapTraceStore": ${VERSION} }\n`))
    }
    return folder
  } catch (error) {
    throw openError(folder.path, error)
  }
}

/** Remedies for a folder that cannot be opened. */
const hints: Readonly<Record<string, string>> = {
  ENOENT: 'Check the path. "reap-trace restore --store" and openStore() create a store.',
  ENOTDIR: 'Pass the path of a folder.',
  EACCES: 'A store is used by its owner: run as that user, or choose another folder.',
}

function openError(path: string, error: unknown): unknown {
  if (error instanceof ReapTraceError || !(error instanceof Error)) return error
  const { code = '', errno, syscall } = error as NodeJS.ErrnoException
  if (syscall === undefined) return error
  const isNew = syscall === 'mkdir'
  const { cause, hint } = describeCall(error, isNew ? 'write' : 'read')
  const message = `cannot ${isNew ? 'create' : 'open'} the store ${path}: ${cause}`
  return new ReapTraceError('ERR_STORE_IO', message, {
    ...{ path, errno, syscall, cause: error },
    hint: (isNew ? undefined : hints[code]) ?? hint,
  })
}

function checkMarker(path: string, bytes: Buffer): void {
  let version: unknown
  try {
    version = (JSON.parse(bytes.toString('utf8')) as { reapTraceStore?: unknown }).reapTraceStore
  } catch {
    throw new ReapTraceError('ERR_STORE_INVALID', `${path} is damaged: it is not JSON`, {
      path,
      check: 'json',
      hint: 'If the folder is a store, delete this file: openStore() writes it again.',
    })
  }
  if (version === VERSION) return
  throw new ReapTraceError(
    'ERR_STORE_INVALID',
    `${path} is of version ${String(version)}, and this reap-trace uses version ${VERSION}`,
    { path, check: 'version', hint: 'Update reap-trace, or use another folder.' },
  )
}

const notAStore = (path: string, readOnly: boolean) =>
  new ReapTraceError('ERR_STORE_INVALID', `${path} is not a store: it has no ${MARKER}`, {
    path,
    check: 'store',
    hint: readOnly
      ? 'Check the path. "reap-trace restore --store" and openStore() create a store.'
      : 'Choose a folder that is empty or does not exist.',
  })

/** Folder of a store. */
export class StoreFolder {
  readonly path: string

  constructor(path: string) {
    this.path = path
  }

  snapshot(key: SnapshotKey): SnapshotFolder {
    return new SnapshotFolder(join(this.path, 'snapshots', key), key)
  }

  /** Key of the snapshot that was restored from this memory file last. */
  async lastFrom(memoryFile: string): Promise<SnapshotKey | undefined> {
    const key = (await readOwn(this.#paths, digest(resolve(memoryFile))))?.toString('utf8') ?? ''
    return isSnapshotKey(key) ? key : undefined
  }

  /** Makes this snapshot the one that {@link lastFrom} finds. */
  async setLastFrom(memoryFile: string, key: SnapshotKey): Promise<void> {
    await ensureFolder(this.#paths).catch((error) => {
      throw ioError('store file', 'write', this.#paths, error)
    })
    await writeOwn(this.#paths, digest(resolve(memoryFile)), Buffer.from(key))
  }

  /** Undoes {@link setLastFrom}, unless another snapshot has taken the place since. */
  async clearLastFrom(memoryFile: string, key: SnapshotKey): Promise<void> {
    if ((await this.lastFrom(memoryFile)) !== key) return
    await unlink(join(this.#paths, digest(resolve(memoryFile))))
  }

  /** Folder of files that are named by the digest of a memory file's path. */
  get #paths(): string {
    return join(this.path, 'paths')
  }

  /** Keys of all snapshots. */
  async keys(): Promise<SnapshotKey[]> {
    const names = await readdir(join(this.path, 'snapshots')).catch((error) => {
      if (error.code === 'ENOENT') return []
      throw ioError('store file', 'read', this.path, error)
    })
    return names.filter(isSnapshotKey)
  }
}
