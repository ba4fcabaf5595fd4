import { randomBytes } from 'node:crypto'
import type { BigIntStats } from 'node:fs'
import { stat } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { ReapTraceError } from './errors.js'
import { checkShape, type MemoryFile, readError } from './memory-file.js'
import { crc32c, sampleDiskPages, samplePages } from './native.js'
import { PAGE } from './trace.js'

/** Pages that stand for a whole file. */
export interface PageSamples {
  /** Numbers of the sampled 4 KiB pages of the file. */
  readonly pages: Uint32Array
  /** CRC-32C of each of `pages`. */
  readonly checksums: Uint32Array
}

/** What ties a working set to the content of its memory file, besides the size. */
export interface SnapshotIdentity extends PageSamples {
  /** 16 random bytes; the sampled places were drawn with them. */
  readonly key: Uint8Array
}

/** What ties the places in a disk image to the image's content. */
export interface DiskIdentity {
  readonly bytes: number
  readonly samples: PageSamples
}

const FIRST_SAMPLES = 16
const SET_SAMPLES = 32
const MEMORY_SAMPLES = 16
const FIRST_DISK_SAMPLES = 8
const SPREAD_DISK_SAMPLES = 8

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

/**
 * Chooses the pages that stand for a disk image: the first of its order, and some spread over it.
 *
 * @param page gives the page of the disk at a place below `count` of the disk's order.
 */
export function chooseDiskPages(count: number, page: (place: number) => number): Uint32Array {
  const chosen = new Set<number>()
  for (let place = 0; place < Math.min(FIRST_DISK_SAMPLES, count); place++) chosen.add(page(place))
  for (let i = 1; count > FIRST_DISK_SAMPLES && i <= SPREAD_DISK_SAMPLES; i++) {
    chosen.add(page(Math.floor((i * count) / SPREAD_DISK_SAMPLES) - 1))
  }
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

/**
 * Takes the identity of a disk image by these pages of it. One that is written to meanwhile gets an
 * identity that fits no image, which costs the prefetch from it and nothing else.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the image has not as many pages as one of `bytes` bytes,
 * - `ERR_SOURCE_READ`: it cannot be read, or is none.
 */
export async function takeDiskIdentity(
  path: string,
  bytes: number,
  pages: Uint32Array,
): Promise<DiskIdentity> {
  const size = Number((await statDiskImage(path)).size)
  if (Math.ceil(size / PAGE) !== Math.ceil(bytes / PAGE)) throw otherDiskSize(path, size, bytes)
  return { bytes: size, samples: { pages, checksums: await sampleDiskPages(path, pages) } }
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
  const stats = await statMemoryFile(memoryFile)
  checkSize(memoryFile, Number(stats.size), set.memoryBytes)
  await compare('memory file', memoryFile, stats, set.identity)
  return stampOf(stats)
}

/**
 * Makes sure that places in a disk image are of this one, as {@link checkIdentity} does of a memory
 * file.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the sizes differ, or a page does (its `offset`),
 * - `ERR_SOURCE_READ`: the disk image cannot be read, or is none.
 */
export async function checkDisk(path: string, { bytes, samples }: DiskIdentity): Promise<void> {
  const stats = await statDiskImage(path)
  const size = Number(stats.size)
  if (size !== bytes) throw otherDiskSize(path, size, bytes)
  await compare('disk image', path, stats, samples)
}

const readers = {
  'memory file': {
    look: (path: string) => statMemoryFile(path),
    sample: (path: string, pages: Uint32Array) => samplePages(path, pages),
  },
  'disk image': {
    look: (path: string) => statDiskImage(path),
    sample: (path: string, pages: Uint32Array) => sampleDiskPages(path, pages),
  },
} as const

/** Compares the sampled pages of a file, unless it was in this very state when they were the same. */
async function compare(
  kind: keyof typeof readers,
  path: string,
  stats: BigIntStats,
  { pages, checksums }: PageSamples,
): Promise<void> {
  const name = [kind, stamp(stats), pages, checksums].join(':')
  if (known.get(name)) return
  const { look, sample } = readers[kind]
  const found = await sample(path, pages)
  const different = pages.findIndex((_, i) => found[i] !== checksums[i])
  if (different >= 0) {
    const offset = pages[different]! * PAGE
    throw new ReapTraceError(
      'ERR_SNAPSHOT_MISMATCH',
      `the working set was made from another ${kind} than ${path}: the page at byte ${offset} differs`,
      { path, check: 'sample', offset, hint: RECORD_AGAIN },
    )
  }
  // What was sampled may be a newer file than the one that was looked at first: the older stamp
  // goes on, and is held against the file that is served.
  const after = await look(path)
  if (stamp(after) === stamp(stats) && isSettled(after)) known.set(name, true)
}

/** @throws ReapTraceError `ERR_SOURCE_READ` for what cannot be a memory file. */
export async function statMemoryFile(path: string): Promise<BigIntStats> {
  const stats = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw readError(path, error)
  })
  checkShape(path, stats)
  return stats
}

/** @throws ReapTraceError `ERR_SOURCE_READ` for what cannot be a disk image. */
export async function statDiskImage(path: string): Promise<BigIntStats> {
  const stats = await stat(path, { bigint: true }).catch((error: unknown) => {
    throw readError(path, error, undefined, 'disk image')
  })
  if (stats.isFile()) return stats
  throw new ReapTraceError('ERR_SOURCE_READ', `the disk image ${path} is not a regular file`, {
    path,
    check: 'regular-file',
    hint: 'Name the file that the VMM has as its disk.',
  })
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

export const RECORD_AGAIN = 'Record the working set again from this snapshot.'

/** @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH` naming both sizes. */
export function checkSize(path: string, bytes: number, memoryBytes: number): void {
  if (bytes === memoryBytes) return
  throw new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set is of a memory of ${memoryBytes} bytes, but ${path} has ${bytes}`,
    { path, check: 'size', hint: RECORD_AGAIN },
  )
}

export const otherDiskSize = (path: string, bytes: number, expected: number): ReapTraceError =>
  new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set is of a disk image of ${expected} bytes, but ${path} has ${bytes}`,
    { path, check: 'size', hint: RECORD_AGAIN },
  )
