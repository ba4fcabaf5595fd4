import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readdir, rm, stat, unlink } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { ReapTraceError } from '../errors.js'
import { describeCall, ioError, makeFolder, replaceFile, writeWhole } from '../files.js'
import { statMemoryFile } from '../snapshot/disk-image.js'
import { contentKey, stampKey } from '../snapshot/file-stamp.js'
import type { Snapshot } from '../snapshot/snapshot.js'
import { invalidFile } from './invalid.js'
import { checkManifest, type SnapshotManifest } from './manifest.js'

/** Key of a snapshot in a store: 16 hexadecimal digits, the name of its folder. */
export type SnapshotKey = string

/** A snapshot to restore from a store. */
export interface StoreSnapshot extends Snapshot {
  /**
   * Key of the snapshot that this one was made from: a VM that was restored from it has run, and was
   * snapshotted again. The first restore prefetches the parent's pages, with the bytes of this
   * memory file, and learning continues from the parent's evidence.
   * @default the last snapshot that was restored from this path, if it has the same size: a snapshot
   * that was made again
   */
  readonly parent?: SnapshotKey | undefined
}

const KEY = /^[0-9a-f]{16}$/
const MARKER = 'store.json'
const VERSION = 1

export const isSnapshotKey = (value: string): boolean => KEY.test(value)

const digest = (text: string): string =>
  createHash('sha256').update(text).digest('hex').slice(0, 16)

/** A snapshot, as its memory file is now. */
export interface Identity {
  readonly key: SnapshotKey
  readonly memoryBytes: number
  /** The memory file, by `contentKey()`. */
  readonly memory: string
}

/**
 * Finds the key of a snapshot: of its `id`, or of the memory file's device, inode, size and mtime.
 * Not of the ctime, which a hard link changes, as a jailer makes one for each VM.
 *
 * @throws ReapTraceError `ERR_SOURCE_READ` if the memory file is not one.
 */
export async function identify({ id, memoryFile }: Snapshot): Promise<Identity> {
  const stats = await statMemoryFile(memoryFile)
  const memory = contentKey(stats)
  const key = digest(id === undefined ? `file:${memory}` : `id:${id}`)
  return { key, memoryBytes: Number(stats.size), memory }
}

/** Name of the file of a variant's set. */
export const setFileName = (variant: string | undefined): string =>
  variant === undefined ? 'common.ws' : `variant-${digest(variant)}.ws`

/** Opens the folder of a store, and creates it unless it is read-only. */
export async function openFolder(path: string, readOnly: boolean): Promise<StoreFolder> {
  const folder = new StoreFolder(resolve(path))
  try {
    if (!readOnly) {
      await makeFolder(folder.path).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'EEXIST') throw error
      })
    }
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
    throw invalidFile(path, 'json', 'it is not JSON')
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

/** @throws ReapTraceError `ERR_UNTRUSTED_FILE` if another user may write to the open file. */
function checkWriters(fd: number, path: string): void {
  const failure = native().checkWriters(fd)
  if (failure) throw toError(failure, { storePath: path })
}

async function checkFolder(path: string): Promise<void> {
  const handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    checkWriters(handle.fd, path)
  } finally {
    await handle.close()
  }
}

/** Content of folder/name; `undefined` if it does not exist. Links are not followed. */
async function readOwn(folder: string, name: string): Promise<Buffer | undefined> {
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

const writeOwn = (folder: string, name: string, bytes: Uint8Array): Promise<void> =>
  replaceFile('store file', join(folder, name), (file) => writeWhole(file, bytes, 0))

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

  async setLastFrom(memoryFile: string, key: SnapshotKey): Promise<void> {
    await makeFolder(this.#paths).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw ioError('store file', 'write', this.#paths, error)
    })
    await writeOwn(this.#paths, digest(resolve(memoryFile)), Buffer.from(key))
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

const MANIFEST = 'snapshot.json'
const EVIDENCE = 'evidence'
const HISTORY = 'history.jsonl'
const MIN_LINE_BYTES = 64

/** Folder of a snapshot in a store. Only the owner of its lock writes to it. */
export class SnapshotFolder {
  readonly path: string
  readonly key: SnapshotKey

  constructor(path: string, key: SnapshotKey) {
    this.path = path
    this.key = key
  }

  get lockPath(): string {
    return join(this.path, 'lock')
  }

  setPath(file: string): string {
    return join(this.path, file)
  }

  get manifestPath(): string {
    return join(this.path, MANIFEST)
  }

  async create(): Promise<void> {
    await makeFolder(this.path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw ioError('store file', 'write', this.path, error)
    })
  }

  /** `undefined` for a snapshot that the store does not have. */
  async readManifest(): Promise<SnapshotManifest | undefined> {
    const bytes = await readOwn(this.path, MANIFEST)
    return bytes && checkManifest(this.manifestPath, bytes)
  }

  writeManifest(manifest: SnapshotManifest): Promise<void> {
    return writeOwn(this.path, MANIFEST, Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`))
  }

  readEvidence(): Promise<Buffer | undefined> {
    return readOwn(this.path, EVIDENCE)
  }

  get evidencePath(): string {
    return join(this.path, EVIDENCE)
  }

  /** State of the evidence file; `undefined` without one. Each write makes a new inode. */
  async evidenceStamp(): Promise<string | undefined> {
    const stats = await stat(this.evidencePath, { bigint: true }).catch(() => undefined)
    return stats && stampKey(stats)
  }

  /** State of the manifest; `undefined` without one. */
  async manifestStamp(): Promise<string | undefined> {
    const stats = await stat(this.manifestPath, { bigint: true }).catch(() => undefined)
    return stats && stampKey(stats)
  }

  writeEvidence(bytes: Uint8Array): Promise<void> {
    return writeOwn(this.path, EVIDENCE, bytes)
  }

  /** Lines of the history, the oldest first, without one that a crash has cut. */
  async readHistory(): Promise<string[]> {
    const text = (await readOwn(this.path, HISTORY))?.toString('utf8') ?? ''
    return text.split('\n').slice(0, -1)
  }

  /** Adds lines; of twice as many as `max`, the last `max` stay. */
  async addHistory(lines: readonly string[], max: number): Promise<void> {
    const text = (all: readonly string[]) => all.map((line) => `${line}\n`).join('')
    const path = join(this.path, HISTORY)
    const flags = constants.O_RDWR | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW
    try {
      const file = await open(path, flags, 0o600)
      try {
        checkWriters(file.fd, path)
        const { size } = await file.stat()
        // Ends a line that a crash has cut.
        const isCut =
          size > 0 && (await file.read(Buffer.alloc(1), 0, 1, size - 1)).buffer[0] !== 10
        await file.appendFile(`${isCut ? '\n' : ''}${text(lines)}`)
        if (size < 2 * max * MIN_LINE_BYTES) return
      } finally {
        await file.close()
      }
      const all = await this.readHistory()
      if (all.length > 2 * max)
        await writeOwn(this.path, HISTORY, Buffer.from(text(all.slice(-max))))
    } catch (error) {
      throw ioError('store file', 'write', path, error)
    }
  }

  /** Size of all files on the disk, in bytes. */
  async bytes(): Promise<number> {
    const names = await readdir(this.path).catch(() => [])
    const sizes = await Promise.all(
      names.map((name) =>
        stat(join(this.path, name)).then(
          ({ blocks }) => blocks * 512,
          () => 0,
        ),
      ),
    )
    return sizes.reduce((sum, size) => sum + size, 0)
  }

  /** Removes what a crash left, and sets that the manifest does not list. */
  async sweep({ sets }: Pick<SnapshotManifest, 'sets'>): Promise<void> {
    const isKept = new Set(sets.map(({ file }) => file))
    const names = await readdir(this.path).catch(() => [])
    const rest = names.filter((name) => name.endsWith('.tmp') || name.endsWith('.ws'))
    await Promise.all(
      rest.filter((name) => !isKept.has(name)).map((name) => unlink(join(this.path, name))),
    ).catch(() => {})
  }

  /** Removes the snapshot; a restore that has its set open reads on. */
  async remove(): Promise<void> {
    try {
      // The manifest first: without it, the snapshot does not exist.
      await unlink(this.manifestPath).catch(() => {})
      await rm(this.path, { recursive: true, force: true })
    } catch (error) {
      throw ioError('store file', 'write', this.path, error)
    }
  }
}
