import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { lstat, open, readdir, rename, rm, stat, unlink } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ioError } from '../files.js'
import { stampKey } from '../snapshot/file-stamp.js'
import { checkManifest, type SnapshotManifest } from './manifest.js'
import { checkFolder, checkWriters, ensureFolder, readOwn, writeOwn } from './own-file.js'
import type { SnapshotKey } from './snapshot-key.js'

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

  /** Path to write a set to, without a link, which would be followed. */
  async newSetPath(file: string): Promise<string> {
    const path = this.setPath(file)
    const there = await lstat(path).catch(() => undefined)
    if (there?.isSymbolicLink()) await unlink(path)
    return path
  }

  get manifestPath(): string {
    return join(this.path, MANIFEST)
  }

  /** @throws ReapTraceError `ERR_STORE_IO`, `ERR_UNTRUSTED_FILE`. */
  async create(): Promise<void> {
    try {
      await ensureFolder(this.path)
      for (const path of [dirname(this.path), this.path]) await checkFolder(path)
    } catch (error) {
      throw ioError('store file', 'write', this.path, error)
    }
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
    const snapshots = dirname(this.path)
    try {
      // At once, since other processes begin the snapshot anew as soon as its lock is gone.
      await rename(this.path, join(snapshots, `${this.key}-${randomBytes(6).toString('hex')}.tmp`))
      // And what a crash left.
      const removed = (await readdir(snapshots)).filter((name) => name.endsWith('.tmp'))
      const options = { recursive: true, force: true }
      await Promise.all(removed.map((name) => rm(join(snapshots, name), options)))
    } catch (error) {
      throw ioError('store file', 'write', this.path, error)
    }
  }
}
