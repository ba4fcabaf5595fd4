import { LRUCache } from 'lru-cache'
import { sampleDiskPages } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { PAGE } from '../page.js'
import { type FileStats, isSettled, stampKey, statFile } from './file-stamp.js'
import { checkShape, readError } from './memory-file.js'

/** Sampled pages that identify a disk image. */
export interface PageSamples {
  /** Numbers of the sampled 4 KiB pages of the image. */
  readonly pages: Uint32Array
  /** CRC-32C of each of `pages`. */
  readonly checksums: Uint32Array
}

/** Identity of the content of a disk image: its size and samples. */
export interface DiskIdentity {
  readonly bytes: number
  readonly samples: PageSamples
}

const FIRST_DISK_SAMPLES = 8
const SPREAD_DISK_SAMPLES = 8

/**
 * Chooses the pages to sample: the first in the disk's order, and some spread over it.
 *
 * @param page returns the page at a rank below `count` in the disk's order.
 */
export function chooseDiskPages(count: number, page: (rank: number) => number): Uint32Array {
  const chosen = new Set<number>()
  for (let rank = 0; rank < Math.min(FIRST_DISK_SAMPLES, count); rank++) chosen.add(page(rank))
  for (let i = 1; count > FIRST_DISK_SAMPLES && i <= SPREAD_DISK_SAMPLES; i++) {
    chosen.add(page(Math.floor((i * count) / SPREAD_DISK_SAMPLES) - 1))
  }
  return Uint32Array.from(chosen)
}

/**
 * Takes the identity of a disk image from these pages. If the image is modified at the same time,
 * the identity matches no image, which only disables its prefetch.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the image has another number of pages than one of `bytes` bytes,
 * - `ERR_SOURCE_READ`: it cannot be read, or is not a disk image.
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

/** Keys of images that matched their identity. */
const known = new LRUCache<string, true>({ max: 1024 })

/**
 * Checks the size and the sampled pages of a disk image.
 *
 * A match is remembered in this process by device, inode, size and timestamps, so that the next
 * check of an unchanged image reads nothing.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the sizes differ, or a page does (its `offset`),
 * - `ERR_SOURCE_READ`: it cannot be read, or is not a disk image.
 */
export async function checkDisk(path: string, { bytes, samples }: DiskIdentity): Promise<void> {
  const stats = await statDiskImage(path)
  const size = Number(stats.size)
  if (size !== bytes) throw otherDiskSize(path, size, bytes)
  const { pages, checksums } = samples
  const name = [stampKey(stats), pages, checksums].join(':')
  if (known.get(name)) return
  const found = await sampleDiskPages(path, pages)
  const different = pages.findIndex((_, i) => found[i] !== checksums[i])
  if (different >= 0) {
    const offset = pages[different]! * PAGE
    throw new ReapTraceError(
      'ERR_SNAPSHOT_MISMATCH',
      `the working set was recorded from another disk image than ${path}: the page at byte ${offset} differs`,
      { path, check: 'sample', offset, hint: RECORD_AGAIN },
    )
  }
  // The image may have been replaced between the first stat() and the sampling.
  const after = await statDiskImage(path)
  if (stampKey(after) === stampKey(stats) && isSettled(after)) known.set(name, true)
}

/** @throws ReapTraceError `ERR_SOURCE_READ` if it cannot be a memory file. */
export async function statMemoryFile(path: string): Promise<FileStats> {
  const stats = await statFile(path).catch((error: unknown) => {
    throw readError(path, error)
  })
  checkShape(path, stats)
  return stats
}

/** @throws ReapTraceError `ERR_SOURCE_READ` if it cannot be a disk image. */
export async function statDiskImage(path: string): Promise<FileStats> {
  const stats = await statFile(path).catch((error: unknown) => {
    throw readError(path, error, undefined, 'disk image')
  })
  if (stats.isFile()) return stats
  throw new ReapTraceError('ERR_SOURCE_READ', `the disk image ${path} is not a regular file`, {
    path,
    check: 'regular-file',
    hint: 'Pass the file that the VMM uses as its disk.',
  })
}

export const RECORD_AGAIN = 'Record the working set again from this snapshot.'
const OTHER_FILE = 'Is it another file? If not, record the working set again from this snapshot.'

/** @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH` naming both sizes. */
export function checkSize(path: string, bytes: number, memoryBytes: number): void {
  if (bytes === memoryBytes) return
  throw new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set was recorded from a memory file of ${memoryBytes} bytes, but ${path} has ${bytes}`,
    { path, check: 'size', hint: OTHER_FILE },
  )
}

export const otherDiskSize = (path: string, bytes: number, expected: number): ReapTraceError =>
  new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set was recorded from a disk image of ${expected} bytes, but ${path} has ${bytes}`,
    { path, check: 'size', hint: OTHER_FILE },
  )
