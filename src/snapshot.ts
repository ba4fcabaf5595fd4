import { randomBytes } from 'node:crypto'
import type { BigIntStats } from 'node:fs'
import { stat } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { ReapTraceError } from './errors.js'
import { checkShape, type MemoryFile, readError } from './memory-file.js'
import { crc32c, samplePages } from './native.js'
import { PAGE } from './trace.js'

/** What ties a working set to the content of its memory file, besides the size. */
export interface SnapshotIdentity {
  /** 16 random bytes; the sampled places were drawn with them. */
  readonly key: Uint8Array
  /** Numbers of the sampled 4 KiB pages of the memory file. */
  readonly pages: Uint32Array
  /** CRC-32C of each of `pages`. */
  readonly checksums: Uint32Array
}

const FIRST_SAMPLES = 16
const SET_SAMPLES = 32
const MEMORY_SAMPLES = 16

/**
 * Chooses the pages that stand for the whole memory file, as docs/working-set-format.md says: the
 * first of the set, which differ between any two snapshots of a kernel, and random ones of the set
 * and of the memory.
 *
 * @param page gives the 4 KiB page of a rank below `count`.
 */
export function choosePages(
  key: Uint8Array,
  count: number,
  page: (rank: number) => number,
  memoryPages: number,
): Uint32Array {
  const below = drawWith(key)
  const chosen = new Set<number>()
  for (let rank = 0; rank < Math.min(FIRST_SAMPLES, count); rank++) chosen.add(page(rank))
  if (count > 0) for (let i = 0; i < SET_SAMPLES; i++) chosen.add(page(below(count)))
  for (let i = 0; i < MEMORY_SAMPLES; i++) chosen.add(below(memoryPages))
  return Uint32Array.from(chosen)
}

/** SplitMix64: the key's first half is the state, the second, made odd, the step. */
function drawWith(key: Uint8Array): (limit: number) => number {
  const view = new DataView(key.buffer, key.byteOffset, 16)
  let state = view.getBigUint64(0, true)
  const step = view.getBigUint64(8, true) | 1n
  const wrap = (value: bigint) => BigInt.asUintN(64, value)
  return (limit) => {
    state = wrap(state + step)
    let z = state
    z = wrap((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n)
    z = wrap((z ^ (z >> 27n)) * 0x94d049bb133111ebn)
    return Number((z ^ (z >> 31n)) % BigInt(limit))
  }
}

/** Takes the identity of an open memory file. */
export async function takeIdentity(
  memoryFile: MemoryFile,
  count: number,
  page: (rank: number) => number,
): Promise<SnapshotIdentity> {
  const key = Uint8Array.from(randomBytes(16))
  const pages = choosePages(key, count, page, memoryFile.bytes / PAGE)
  const bytes = Buffer.allocUnsafe(pages.length * PAGE)
  await memoryFile.readPages(pages, bytes)
  const checksums = pages.map((_, i) => crc32c(bytes.subarray(i * PAGE, (i + 1) * PAGE)))
  return { key, pages, checksums }
}

/** Files that were compared and are the same. */
const known = new LRUCache<string, true>({ max: 1024 })

/**
 * Makes sure that a working set was made from this memory file, by its size and the sampled pages.
 *
 * What was found the same is remembered in this process by device, inode, size and times, so that
 * the next check of an unchanged file reads nothing.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the sizes differ, or a page does (its `offset`),
 * - `ERR_SOURCE_READ`: the memory file cannot be read, or is none.
 * @throws TypeError when the working set is not from a file.
 */
export async function checkIdentity(
  memoryFile: string,
  set: { readonly memoryBytes: number; readonly identity: SnapshotIdentity | undefined },
): Promise<FileStamp> {
  if (!set.identity) throw new TypeError('Only a working set that is in a file has an identity')
  const { key, pages, checksums } = set.identity
  const stats = await statMemoryFile(memoryFile)
  checkSize(memoryFile, Number(stats.size), set.memoryBytes)

  const name = [stamp(stats), key, pages, checksums].join(':')
  if (known.get(name)) return stampOf(stats)
  const found = await samplePages(memoryFile, pages)
  const different = pages.findIndex((_, i) => found[i] !== checksums[i])
  if (different >= 0) {
    const offset = pages[different]! * PAGE
    throw new ReapTraceError(
      'ERR_SNAPSHOT_MISMATCH',
      `the working set was made from another memory file than ${memoryFile}: the page at byte ${offset} differs`,
      { path: memoryFile, check: 'sample', offset, hint: RECORD_AGAIN },
    )
  }
  // What was sampled may be a newer file than the one that was looked at first: the older stamp
  // goes on, and is held against the file that is served.
  const after = await statMemoryFile(memoryFile)
  if (stamp(after) === stamp(stats) && isSettled(after)) known.set(name, true)
  return stampOf(stats)
}

/** @throws ReapTraceError `ERR_SOURCE_READ` for what cannot be a memory file. */
export async function statMemoryFile(path: string): Promise<BigIntStats> {
  const stats = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw readError(path, error)
  })
  checkShape(path, stats)
  return stats
}

/** Device, inode, size, and the times of the last change of data and of status in nanoseconds. */
export type FileStamp = BigUint64Array

export const stampOf = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): FileStamp =>
  BigUint64Array.of(dev, ino, size, mtimeNs, ctimeNs)

/** The same in one word. */
export const stamp = ({ dev, ino, size, mtimeNs, ctimeNs }: BigIntStats) =>
  [dev, ino, size, mtimeNs, ctimeNs].join(':')

/**
 * Whether a later write must show in the times: one within the kernel's clock tick (10 ms at the
 * most) of the last does not.
 */
export const isSettled = ({ mtimeMs, ctimeMs }: BigIntStats) =>
  BigInt(Date.now()) - (mtimeMs > ctimeMs ? mtimeMs : ctimeMs) > 100n

const RECORD_AGAIN = 'Record the working set again from this snapshot.'

/** @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH` naming both sizes. */
export function checkSize(path: string, bytes: number, memoryBytes: number): void {
  if (bytes === memoryBytes) return
  throw new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set is of a memory of ${memoryBytes} bytes, but ${path} has ${bytes}`,
    { path, check: 'size', hint: RECORD_AGAIN },
  )
}
