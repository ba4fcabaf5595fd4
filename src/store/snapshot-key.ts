import { createHash } from 'node:crypto'
import { statMemoryFile } from '../snapshot/disk-image.js'
import { contentKey } from '../snapshot/file-stamp.js'
import type { Snapshot } from '../snapshot/snapshot.js'

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

export const isSnapshotKey = (value: string): boolean => KEY.test(value)

/** First 16 hexadecimal digits of the SHA-256 of a text. */
export const digest = (text: string): string =>
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
