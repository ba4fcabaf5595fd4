import type { BigIntStats } from 'node:fs'
import { stat } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { sampleDiskPages } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { PAGE } from '../page.js'
import { isSettled, stampKey } from './file-stamp.js'
import { checkShape, readError } from './memory-file.js'

/** Pages that stand for a whole disk image. */
export interface PageSamples {
  /** Numbers of the sampled 4 KiB pages of the image. */
  readonly pages: Uint32Array
  /** CRC-32C of each of `pages`. */
  readonly checksums: Uint32Array
}

/** What ties the places in a disk image to the image's content. */
export interface DiskIdentity {
  readonly bytes: number
  readonly samples: PageSamples
}

const FIRST_DISK_SAMPLES = 8
const SPREAD_DISK_SAMPLES = 8

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

/** Images that were compared and are the same. */
const known = new LRUCache<string, true>({ max: 1024 })

/**
 * Makes sure that places in a disk image are of this one, by its size and the sampled pages.
 *
 * What was found the same is remembered in this process by device, inode, size and times, so that
 * the next check of an unchanged image reads nothing.
 *
 * @throws ReapTraceError
 * - `ERR_SNAPSHOT_MISMATCH`: the sizes differ, or a page does (its `offset`),
 * - `ERR_SOURCE_READ`: the disk image cannot be read, or is none.
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
      `the working set was made from another disk image than ${path}: the page at byte ${offset} differs`,
      { path, check: 'sample', offset, hint: RECORD_AGAIN },
    )
  }
  // What was sampled may be a newer image than the one that was looked at first.
  const after = await statDiskImage(path)
  if (stampKey(after) === stampKey(stats) && isSettled(after)) known.set(name, true)
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
