import { crc32c } from '../../binding/addon.js'
import { PAGE } from '../../page.js'
import type { DiskIdentity } from '../../snapshot/disk-image.js'

// The bytes are specified in docs/working-set-format.md; the names here are the ones used there.
// This file writes them; native/engine/working_set reads and checks them.

const MAGIC = 0x5445_5357_5041_4552n // "REAPWSET"
const MAJOR = 3
const MINOR = 0
const HEADER_BYTES = 4096
/** Offset of the id in the header. */
const ID_AT = 104
export const ID_BYTES = 16
const ZERO_EXTENT = 1

const GROUP_BYTES = 32
const EXTENT_BYTES = 16
const TOUCH_BYTES = 8
export const DISK_BYTES = 512
/** Offsets in a disk entry. */
const DISK_SAMPLES_AT = 16
const DISK_SAMPLE_BYTES = 8
const DISK_NAME_BYTES_AT = 144
export const DISK_NAME_AT = 152

export const MAX_GROUP_DATA_PAGES = 256
export const MAX_GROUP_PAGES = 4096
const MAX_MANIFEST_BYTES = 65536
export const MAX_DISKS = 16
const MAX_NAME_BYTES = 255
/** Maximum allocation that a file can demand of its reader. */
const MAX_INDEX_BYTES = 2 ** 28

/** Origin of a working-set file. Other writers may omit or add members. */
export interface Manifest {
  /** Time of the write, as ISO 8601 in UTC. */
  readonly createdAt?: string
  /** Name of the program that wrote the file. */
  readonly createdBy?: string
  readonly host?: string
  /** Release of the host's kernel. */
  readonly kernel?: string
  /** Name of the memory file, without its folder. */
  readonly memoryFile?: string
  /** Description passed to `write()`. */
  readonly label?: string
  /** Identifier of the snapshot, as passed to `write()`. */
  readonly snapshotId?: string
}

/** Part of the data, fetched and installed as a unit. */
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
  /** Lowest rank of its pages. */
  readonly rank: number
  /** Whether all bytes are zero, so that the file holds no data. */
  readonly zero: boolean
}

/** A disk image with pages to prefetch. */
export interface StoredDisk extends DiskIdentity {
  /** File name of the image, without its folder. */
  readonly name: string
  /** Number of 4 KiB pages touched. */
  readonly pages: number
}

/** Content of the header and the index, except the tables of groups and extents. */
export interface Head {
  /** Identifier of the content: 16 random bytes, new for each write. */
  readonly id: Uint8Array
  /** Page size of the recorded guest. */
  readonly pageSize: number
  readonly memoryBytes: number
  /** Number of runs merged. */
  readonly runs: number
  /**
   * Pairs, in first-touch order: the number of the first 4 KiB page of a guest page, and its
   * first-touch time.
   */
  readonly touches: Uint32Array
  /** Share of the touched pages that the guest modified; `undefined` if unknown. */
  readonly writtenShare: number | undefined
  readonly dataPages: number
  readonly zeroPages: number
  readonly disks: readonly StoredDisk[]
  /** Pairs of a page and its time: those of the first disk, of the second, and so on. */
  readonly diskTouches: Uint32Array
}

const alignUp = (bytes: number): number => Math.ceil(bytes / PAGE) * PAGE

/** Encodes the manifest as JSON. */
export function encodeManifest(manifest: Manifest): Buffer {
  const bytes = Buffer.from(JSON.stringify(manifest))
  if (bytes.length <= MAX_MANIFEST_BYTES) return bytes
  throw new TypeError(`A manifest of ${bytes.length} bytes exceeds ${MAX_MANIFEST_BYTES}`)
}

/**
 * Upper bound of the size of header and index, and so the offset of the data, for a set of `pages`
 * 4 KiB pages.
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
  // full; in the worst case each page is a separate extent.
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

/** Encodes the header and the index, which end at or before `dataOffset`. */
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

/** Truncates a name that is too long: some file systems allow longer ones. */
export function shortName(name: string): string {
  const bytes = Buffer.from(name).subarray(0, MAX_NAME_BYTES)
  // A streaming decoder omits an incomplete character at the end.
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes, { stream: true })
}

const bytesOf = (table: Uint32Array): Uint8Array =>
  new Uint8Array(table.buffer, table.byteOffset, table.byteLength)
