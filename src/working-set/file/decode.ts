import { crc32c, readIndex } from '../../binding/addon.js'
import { ReapTraceError } from '../../errors.js'
import { MAX_MEMORY, PAGE } from '../../page.js'
import { checkDiskExtents, decodeDisks, type Refuse } from './decode-disks.js'
import {
  DISK_BYTES,
  DISK_EXTENT_BYTES,
  EXTENT_BYTES,
  GROUP_BYTES,
  HEADER_BYTES,
  ID_AT,
  ID_BYTES,
  MAGIC,
  MAJOR,
  type Manifest,
  MINOR,
  MOST_DISKS,
  MOST_INDEX_BYTES,
  MOST_MANIFEST_BYTES,
  TOUCH_BYTES,
  type WorkingSetFile,
} from './format.js'

/**
 * Reads and checks the header and the index of a working-set file, never its data.
 *
 * @throws ReapTraceError
 * - `ERR_WORKING_SET_IO`: the file cannot be opened or read,
 * - `ERR_WORKING_SET_INVALID`: it breaks a rule of the format; `check` and `offset` say which and where.
 */
export async function readWorkingSetFile(path: string): Promise<WorkingSetFile> {
  const refuse: Refuse = (check, offset, what) =>
    new ReapTraceError(
      'ERR_WORKING_SET_INVALID',
      `${path} is no sound working set: ${what} (check ${check}, at byte ${offset})`,
      { path, check, offset, hint: 'Record it again.' },
    )
  const { fileBytes, header: start, index, broken, stamp } = await readIndex(path)
  if (fileBytes === undefined) throw refuse('regular-file', 0, 'it is not a regular file')
  const header = decodeHeader(start, fileBytes, refuse)
  if (index.length < header.indexBytes) {
    throw refuse('truncated', HEADER_BYTES + index.length, 'it ends there')
  }
  if (broken) throw refuse(broken.check, broken.offset, broken.what)
  return { path, fileBytes, stamp, ...decodeIndex(header, index, refuse) }
}

interface Header {
  readonly memoryBytes: number
  readonly pageSize: number
  readonly dataOffset: number
  readonly groups: number
  readonly extents: number
  readonly touches: number
  readonly zeroPages: number
  readonly indexBytes: number
  readonly runs: number
  readonly manifestBytes: number
  readonly dataPages: number
  readonly disks: number
  readonly diskExtents: number
  readonly id: Uint8Array
}

/** The u32 that follows the touch count, and all behind the counts of disks. */
const isReserved = (offset: number): boolean => (offset >= 76 && offset < 80) || offset >= 136

function decodeHeader(bytes: Uint8Array, fileBytes: number, refuse: Refuse): Header {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const u32 = (offset: number) => view.getUint32(offset, true)
  // Above 2^53 this is inexact, and far above every limit that it is compared with.
  const u64 = (offset: number) => Number(view.getBigUint64(offset, true))

  if (bytes.length < 8 || view.getBigUint64(0, true) !== MAGIC) {
    throw refuse('magic', 0, 'it does not begin with "REAPWSET"')
  }
  if (bytes.length < HEADER_BYTES) throw refuse('truncated', bytes.length, 'it ends there')
  const [major, minor] = [view.getUint16(8, true), view.getUint16(10, true)]
  if (major !== MAJOR || minor > MINOR) {
    throw refuse('version', 8, `it has version ${major}.${minor}, not ${MAJOR}.${MINOR}`)
  }
  const headerChecksum = u32(124)
  view.setUint32(124, 0)
  if (crc32c(bytes) !== headerChecksum) {
    throw refuse('header-checksum', 124, 'the checksum of its header is wrong')
  }
  const used = bytes.findIndex((byte, offset) => byte !== 0 && isReserved(offset))
  if (used >= 0) throw refuse('reserved', used, 'a reserved byte is not zero')

  const header: Header = {
    memoryBytes: u64(24),
    pageSize: u32(36),
    indexBytes: u64(48),
    dataOffset: u64(56),
    groups: u32(64),
    extents: u32(68),
    touches: u32(72),
    runs: u32(80),
    manifestBytes: u32(84),
    dataPages: u64(88),
    zeroPages: u64(96),
    disks: u32(128),
    diskExtents: u32(132),
    id: bytes.slice(ID_AT, ID_AT + ID_BYTES),
  }
  const { memoryBytes, pageSize, indexBytes, dataOffset, touches, dataPages, zeroPages } = header
  const rule = (kept: boolean, check: string, offset: number, what: string) => {
    if (!kept) throw refuse(check, offset, what)
  }
  rule(u32(12) === HEADER_BYTES, 'header-bytes', 12, 'its header has another size')
  rule(u32(32) === PAGE, 'granule', 32, 'its pages are not of 4096 bytes')
  rule(pageSize === 4096 || pageSize === 2097152, 'page-size', 36, 'no guest has such pages')
  rule(
    memoryBytes > 0 && memoryBytes <= MAX_MEMORY && memoryBytes % pageSize === 0,
    'memory-bytes',
    24,
    'no guest has such a memory',
  )
  rule(fileBytes >= u64(16), 'truncated', fileBytes, `it should have ${u64(16)} bytes`)
  rule(fileBytes === u64(16), 'file-bytes', 16, `it has ${fileBytes} bytes, not ${u64(16)}`)
  rule(u64(40) === HEADER_BYTES, 'index-offset', 40, 'its index does not follow the header')
  rule(header.runs > 0, 'runs', 80, 'it was made of no run')
  rule(
    header.manifestBytes <= MOST_MANIFEST_BYTES,
    'manifest-bytes',
    84,
    'the manifest is too long',
  )
  rule(header.disks <= MOST_DISKS, 'disk-count', 128, `it has more than ${MOST_DISKS} disks`)
  rule(
    indexBytes <= MOST_INDEX_BYTES &&
      indexBytes ===
        header.groups * GROUP_BYTES +
          header.extents * EXTENT_BYTES +
          touches * TOUCH_BYTES +
          header.disks * DISK_BYTES +
          header.diskExtents * DISK_EXTENT_BYTES +
          header.manifestBytes,
    'index-bytes',
    48,
    'the size of its index is not that of the tables, or too large',
  )
  rule(
    dataOffset % PAGE === 0 &&
      dataOffset >= HEADER_BYTES + indexBytes &&
      dataOffset + dataPages * PAGE === fileBytes,
    'data-offset',
    56,
    'its data does not lie between the index and the end',
  )
  rule(
    dataPages + zeroPages === touches * (pageSize / PAGE) &&
      dataPages + zeroPages <= memoryBytes / PAGE,
    'page-count',
    88,
    'its pages with data and its zero pages are not together those that were touched',
  )
  return header
}

type Index = Omit<WorkingSetFile, 'path' | 'fileBytes' | 'stamp'>

function decodeIndex(header: Header, bytes: Uint8Array, refuse: Refuse): Index {
  const extentsAt = header.groups * GROUP_BYTES
  const touchesAt = extentsAt + header.extents * EXTENT_BYTES
  const disksAt = touchesAt + header.touches * TOUCH_BYTES
  const diskExtentsAt = disksAt + header.disks * DISK_BYTES
  const manifestAt = diskExtentsAt + header.diskExtents * DISK_EXTENT_BYTES
  const table = (from: number, to: number) =>
    new Uint32Array(bytes.buffer, bytes.byteOffset + from, (to - from) / 4)

  const disks = decodeDisks(bytes.subarray(disksAt, diskExtentsAt), HEADER_BYTES + disksAt, refuse)
  checkDiskExtents(disks, table(diskExtentsAt, manifestAt), HEADER_BYTES + disksAt, refuse)
  return {
    id: header.id,
    pageSize: header.pageSize,
    memoryBytes: header.memoryBytes,
    runs: header.runs,
    dataPages: header.dataPages,
    zeroPages: header.zeroPages,
    touches: table(touchesAt, disksAt),
    manifest: decodeManifest(bytes.subarray(manifestAt), HEADER_BYTES + manifestAt, refuse),
    groups: bytes.subarray(0, extentsAt),
    extents: bytes.subarray(extentsAt, touchesAt),
    disks,
    diskExtents: bytes.subarray(diskExtentsAt, manifestAt),
  }
}

const manifestMembers: readonly (keyof Manifest)[] = [
  'createdAt',
  'createdBy',
  'host',
  'kernel',
  'memoryFile',
  'label',
  'snapshotId',
]

function decodeManifest(bytes: Uint8Array, at: number, refuse: Refuse): Manifest {
  let manifest: unknown
  try {
    manifest = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes))
  } catch {
    throw refuse('manifest', at, 'the manifest is not JSON in UTF-8')
  }
  if (typeof manifest !== 'object' || manifest === null || Array.isArray(manifest)) {
    throw refuse('manifest', at, 'the manifest is not a JSON object')
  }
  for (const name of manifestMembers) {
    const value = (manifest as Record<string, unknown>)[name]
    if (value !== undefined && typeof value !== 'string') {
      throw refuse('manifest', at, `the member "${name}" of the manifest is not a string`)
    }
  }
  return manifest
}
