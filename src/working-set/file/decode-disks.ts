import type { ReapTraceError } from '../../errors.js'
import { PAGE } from '../../page.js'
import {
  DISK_BYTES,
  DISK_EXTENT_BYTES,
  DISK_NAME_AT,
  DISK_NAME_BYTES_AT,
  DISK_SAMPLE_BYTES,
  DISK_SAMPLES_AT,
  MOST_DISK_BYTES,
  MOST_DISK_SAMPLES,
  MOST_NAME_BYTES,
  type StoredDisk,
} from './format.js'

/** Makes the error for a rule that is broken at `offset`. */
export type Refuse = (check: string, offset: number, what: string) => ReapTraceError

/**
 * The entries of a table of disks, each checked by itself.
 *
 * @param at where the table begins in the file.
 */
export function decodeDisks(table: Uint8Array, at: number, refuse: Refuse): StoredDisk[] {
  return Array.from({ length: table.length / DISK_BYTES }, (_, i) =>
    decodeDisk(table.subarray(i * DISK_BYTES, (i + 1) * DISK_BYTES), (check, offset, what) =>
      refuse(check, at + i * DISK_BYTES + offset, `disk ${i} ${what}`),
    ),
  )
}

function decodeDisk(entry: Uint8Array, refuse: Refuse): StoredDisk {
  const view = new DataView(entry.buffer, entry.byteOffset, entry.byteLength)
  const u32 = (offset: number) => view.getUint32(offset, true)
  const unused = (from: number, to: number) => {
    const used = entry.subarray(from, to).findIndex((byte) => byte !== 0)
    if (used >= 0) throw refuse('reserved', from + used, 'has a byte that is not used and not zero')
  }

  // Above 2^53 this is inexact, and far above the limit.
  const bytes = Number(view.getBigUint64(0, true))
  if (bytes === 0 || bytes > MOST_DISK_BYTES) {
    throw refuse('disk-bytes', 0, 'has a size that no image has')
  }
  const pages = u32(8)
  const count = u32(12)
  if (count > MOST_DISK_SAMPLES || (count === 0 && pages > 0)) {
    throw refuse('disk-samples', 12, `has no samples, or more than ${MOST_DISK_SAMPLES}`)
  }
  const samples = { pages: new Uint32Array(count), checksums: new Uint32Array(count) }
  for (let i = 0; i < count; i++) {
    const offset = DISK_SAMPLES_AT + i * DISK_SAMPLE_BYTES
    samples.pages[i] = u32(offset)
    samples.checksums[i] = u32(offset + 4)
    if (u32(offset) >= Math.ceil(bytes / PAGE)) {
      throw refuse('disk-samples', offset, 'has a sample outside of it')
    }
  }
  unused(DISK_SAMPLES_AT + count * DISK_SAMPLE_BYTES, DISK_NAME_BYTES_AT)

  const nameBytes = u32(DISK_NAME_BYTES_AT)
  if (nameBytes === 0 || nameBytes > MOST_NAME_BYTES) {
    throw refuse('disk-name', DISK_NAME_BYTES_AT, 'has no name, or too long a one')
  }
  unused(DISK_NAME_BYTES_AT + 4, DISK_NAME_AT)
  const nameEnd = DISK_NAME_AT + nameBytes
  const name = decodeName(entry.subarray(DISK_NAME_AT, nameEnd))
  if (name === undefined)
    throw refuse('disk-name', DISK_NAME_AT, 'has a name that no file can have')
  unused(nameEnd, DISK_BYTES)
  return { name, bytes, pages, samples }
}

/** `undefined` for what is not UTF-8 or names no file. */
function decodeName(bytes: Uint8Array): string | undefined {
  try {
    const name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    return /[/\0]/.test(name) ? undefined : name
  } catch {
    return undefined
  }
}

/**
 * Checks that disk extents lie in their disks, in order and apart, and that each disk has as many
 * pages as it says.
 *
 * @param at where the table of disks begins in the file; the extents are behind it.
 */
export function checkDiskExtents(
  disks: readonly StoredDisk[],
  extents: Uint32Array,
  at: number,
  refuse: Refuse,
): void {
  const extentsAt = at + disks.length * DISK_BYTES
  const first = new Float64Array(extents.length / 4)
  const last = new Float64Array(extents.length / 4)
  const pages = new Float64Array(disks.length)
  let time = 0
  for (let i = 0; i < first.length; i++) {
    const offset = extentsAt + i * DISK_EXTENT_BYTES
    const number = extents[4 * i]!
    const firstPage = extents[4 * i + 1]!
    const pageCount = extents[4 * i + 2]!
    const disk = disks[number]
    if (!disk) throw refuse('disk-extent-disk', offset, 'an extent is of no disk')
    if (pageCount === 0 || firstPage + pageCount > Math.ceil(disk.bytes / PAGE)) {
      throw refuse('disk-extent-pages', offset + 4, 'an extent is empty or lies outside its disk')
    }
    if (extents[4 * i + 3]! < time) {
      throw refuse('disk-extent-order', offset + 12, 'the times of disk extents fall')
    }
    time = extents[4 * i + 3]!
    pages[number]! += pageCount
    first[i] = keyOf(number, firstPage)
    last[i] = keyOf(number, firstPage + pageCount - 1)
  }
  const covered = firstCovered(first, last)
  if (covered !== undefined) {
    let later = extents.length / 4 - 1
    while (keyOf(extents[4 * later]!, extents[4 * later + 1]!) !== covered) later--
    const offset = extentsAt + later * DISK_EXTENT_BYTES
    throw refuse('disk-extent-overlap', offset, 'a page of a disk is in two extents')
  }
  disks.forEach((disk, i) => {
    if (pages[i] === disk.pages) return
    const offset = at + i * DISK_BYTES + 8
    throw refuse('disk-pages', offset, `disk ${i} has not the pages that its extents have`)
  })
}

/** The lowest first page of a range that is in another range too. Sorts both arrays. */
function firstCovered(first: Float64Array, last: Float64Array): number | undefined {
  // Sorted each for itself: where an extent begins, all that began before it must have ended.
  first.sort()
  last.sort()
  for (let i = 1; i < first.length; i++) {
    if (first[i]! <= last[i - 1]!) return first[i]
  }
  return undefined
}

/** A page as one number, so that pages of several disks can be sorted together. */
const keyOf = (disk: number, page: number): number => disk * 2 ** 32 + page
