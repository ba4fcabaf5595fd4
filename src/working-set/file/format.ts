import { crc32c } from '../../binding/addon.js'
import { PAGE } from '../../page.js'
import type { DiskIdentity } from '../../snapshot/disk-image.js'

// The bytes are specified in docs/working-set-format.md; the names here are the ones used there.
// This file writes them; native/engine/working_set reads and checks them.

export const MAGIC = 0x5445_5357_5041_4552n // "REAPWSET"
export const MAJOR = 3
export const MINOR = 0
export const HEADER_BYTES = 4096
/** Where the id is in the header. */
export const ID_AT = 104
export const ID_BYTES = 16
export const ZERO_EXTENT = 1

export const GROUP_BYTES = 32
export const EXTENT_BYTES = 16
export const TOUCH_BYTES = 8
export const DISK_BYTES = 512
/** Where a disk's samples, the size of its name, and its name begin. */
export const DISK_SAMPLES_AT = 16
export const DISK_SAMPLE_BYTES = 8
export const DISK_NAME_BYTES_AT = 144
export const DISK_NAME_AT = 152

export const MAX_GROUP_DATA_PAGES = 256
export const MAX_GROUP_PAGES = 4096
export const MAX_MANIFEST_BYTES = 65536
export const MAX_DISKS = 16
export const MAX_NAME_BYTES = 255
/** What a reader may be made to allocate. */
export const MAX_INDEX_BYTES = 2 ** 28

/** Where and when a working set was made. Other writers may leave members out, or add some. */
export interface Manifest {
  /** ISO 8601, in UTC. */
  readonly createdAt?: string
  /** The program that wrote the file. */
  readonly createdBy?: string
  readonly host?: string
  /** Release of the host's kernel. */
  readonly kernel?: string
  /** Name of the memory file, without its folder. */
  readonly memoryFile?: string
  /** Whatever the user of `write()` gave. */
  readonly label?: string
  /** Name of the snapshot, given by whoever wrote the file. */
  readonly snapshotId?: string
}

/** Part of the data, fetched and installed as one. */
export interface Group {
  readonly dataOffset: number
  readonly dataBytes: number
  readonly firstExtent: number
  readonly extentCount: number
  /** CRC-32C of the data. */
  readonly checksum: number
  /** Rank of the group's first page: the number of pages in the groups before it. */
  readonly firstRank: number
}

/** A contiguous run of 4 KiB pages in a group. */
export interface StoredExtent {
  readonly firstPage: number
  readonly pageCount: number
  /** The lowest rank of its pages. */
  readonly rank: number
  /** All bytes are zero; there is no data in the file. */
  readonly zero: boolean
}

/** A disk image that was read. */
export interface StoredDisk extends DiskIdentity {
  /** Of the image, without its folder. */
  readonly name: string
  /** Number of pages of 4 KiB that were touched. */
  readonly pages: number
}

/** What the header and the index are made of, but for the tables of groups and extents. */
export interface Head {
  /** 16 random bytes, drawn anew for each file that is written: they name this content. */
  readonly id: Uint8Array
  /** Of the guest that was recorded. */
  readonly pageSize: number
  readonly memoryBytes: number
  /** Number of runs that were merged. */
  readonly runs: number
  /**
   * Pairs, in first-touch order: the number of the first 4 KiB page of a page of the guest, and when
   * it was touched.
   */
  readonly touches: Uint32Array
  /** Share of the touched pages that the guest changed; `undefined` where nobody looked. */
  readonly writtenShare: number | undefined
  readonly dataPages: number
  readonly zeroPages: number
  readonly disks: readonly StoredDisk[]
  /** Pairs of a page and a time: those of the first disk, of the second, … */
  readonly diskTouches: Uint32Array
}

const alignUp = (bytes: number): number => Math.ceil(bytes / PAGE) * PAGE

/** JSON as it goes into the file. */
export function encodeManifest(manifest: Manifest): Buffer {
  const bytes = Buffer.from(JSON.stringify(manifest))
  if (bytes.length <= MAX_MANIFEST_BYTES) return bytes
  throw new TypeError(`A manifest of ${bytes.length} bytes exceeds ${MAX_MANIFEST_BYTES}`)
}

/**
 * Where the data of a set of `pages` 4 KiB pages can begin, whatever its groups and extents will be.
 *
 * @param touches number of touches, those of disks included.
 * @param disks number of disks.
 * @throws TypeError for a set too large for any reader.
 */
export function dataOffsetFor(
  pages: number,
  touches: number,
  disks: number,
  manifestBytes: number,
): number {
  // A group ends with its 256th data page or its 4096th page of any kind, so all but the last are
  // full; in the worst case each page is an extent of its own.
  const groups = Math.ceil(pages / MAX_GROUP_DATA_PAGES)
  const index =
    groups * GROUP_BYTES +
    pages * EXTENT_BYTES +
    touches * TOUCH_BYTES +
    disks * DISK_BYTES +
    manifestBytes
  if (index <= MAX_INDEX_BYTES) return alignUp(HEADER_BYTES + index)
  throw new TypeError(
    `A working set of ${pages} pages${disks > 0 ? ', and those of its disks,' : ''} is too large for its file format`,
  )
}

/** The header and the index: the bytes of the file up to somewhere before `dataOffset`. */
export function encodeHead(
  index: Head,
  groups: readonly Group[],
  extents: readonly StoredExtent[],
  manifest: Buffer,
  dataOffset: number,
): Buffer {
  const { touches, disks, diskTouches } = index
  const words: number[] = []
  for (const { dataOffset: offset, dataBytes, ...group } of groups) {
    words.push(offset % 2 ** 32, Math.floor(offset / 2 ** 32), dataBytes)
    words.push(group.firstExtent, group.extentCount, group.checksum, group.firstRank, 0)
  }
  for (const { firstPage, pageCount, rank, zero } of extents) {
    words.push(firstPage, pageCount, rank, zero ? ZERO_EXTENT : 0)
  }
  for (const word of touches) words.push(word)
  for (const word of diskTouches) words.push(word)
  const bytes = Buffer.concat([
    Buffer.alloc(HEADER_BYTES),
    bytesOf(Uint32Array.from(words)),
    ...disks.map(encodeDisk),
    manifest,
  ])
  const indexBytes = bytes.length - HEADER_BYTES

  const u32 = (offset: number, value: number) => bytes.writeUInt32LE(value, offset)
  const u64 = (offset: number, value: number) => bytes.writeBigUInt64LE(BigInt(value), offset)
  bytes.writeBigUInt64LE(MAGIC, 0)
  bytes.writeUInt16LE(MAJOR, 8)
  bytes.writeUInt16LE(MINOR, 10)
  u32(12, HEADER_BYTES)
  u64(16, dataOffset + index.dataPages * PAGE)
  u64(24, index.memoryBytes)
  u32(32, PAGE)
  u32(36, index.pageSize)
  u64(40, HEADER_BYTES)
  u64(48, indexBytes)
  u64(56, dataOffset)
  u32(64, groups.length)
  u32(68, extents.length)
  u32(72, touches.length / 2)
  if (index.writtenShare !== undefined) {
    u32(76, 1 + Math.round((index.writtenShare * touches.length) / 2))
  }
  u32(80, index.runs)
  u32(84, manifest.length)
  u64(88, index.dataPages)
  u64(96, index.zeroPages)
  bytes.set(index.id, ID_AT)
  u32(128, disks.length)
  u32(132, diskTouches.length / 2)
  u32(120, crc32c(bytes.subarray(HEADER_BYTES)))
  u32(124, crc32c(bytes.subarray(0, HEADER_BYTES)))
  return bytes
}

function encodeDisk({ name, bytes: fileBytes, pages, samples }: StoredDisk): Buffer {
  const bytes = Buffer.alloc(DISK_BYTES)
  bytes.writeBigUInt64LE(BigInt(fileBytes), 0)
  bytes.writeUInt32LE(pages, 8)
  bytes.writeUInt32LE(samples.pages.length, 12)
  samples.pages.forEach((page, i) => {
    bytes.writeUInt32LE(page, DISK_SAMPLES_AT + i * DISK_SAMPLE_BYTES)
    bytes.writeUInt32LE(samples.checksums[i]!, DISK_SAMPLES_AT + i * DISK_SAMPLE_BYTES + 4)
  })
  const text = Buffer.from(shortName(name))
  bytes.writeUInt32LE(text.length, DISK_NAME_BYTES_AT)
  bytes.set(text, DISK_NAME_AT)
  return bytes
}

/** A name as far as it fits: some file systems have names of more bytes. */
export function shortName(name: string): string {
  const bytes = Buffer.from(name).subarray(0, MAX_NAME_BYTES)
  // A stream waits for the rest of a character, so that a part of one is left out.
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes, { stream: true })
}

const bytesOf = (table: Uint32Array): Uint8Array =>
  new Uint8Array(table.buffer, table.byteOffset, table.byteLength)
