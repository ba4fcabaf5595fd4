import type { FileHandle } from 'node:fs/promises'
import { crc32c } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { readWhole } from '../files.js'
import { HUGE_PAGE, MAX_MEMORY, PAGE } from '../page.js'

// The bytes are specified in docs/trace-format.md; the names here are the ones used there.
const MAGIC = 0x4543_5254_5041_4552n // "REAPTRCE"
const MAJOR = 1
const MINOR = 0
const HEADER_BYTES = 64
const TOUCH_BYTES = 8

/** Content of a trace file. */
export interface TraceFileContent {
  readonly pageSize: number
  readonly memoryBytes: number
  /** Pairs of a guest page number and its time in microseconds, in first-touch order. */
  readonly touches: Uint32Array
  readonly writtenShare: number | undefined
}

export function encodeTrace({
  pageSize,
  memoryBytes,
  touches,
  writtenShare,
}: TraceFileContent): Buffer {
  const table = new Uint8Array(touches.buffer, touches.byteOffset, touches.byteLength)
  const bytes = Buffer.concat([Buffer.alloc(HEADER_BYTES), table])
  const count = touches.length / 2
  bytes.writeBigUInt64LE(MAGIC, 0)
  bytes.writeUInt16LE(MAJOR, 8)
  bytes.writeUInt16LE(MINOR, 10)
  bytes.writeUInt32LE(pageSize, 12)
  bytes.writeBigUInt64LE(BigInt(memoryBytes), 16)
  bytes.writeUInt32LE(count, 24)
  bytes.writeUInt32LE(writtenShare === undefined ? 0 : 1 + Math.round(writtenShare * count), 28)
  bytes.writeUInt32LE(crc32c(table), 32)
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, HEADER_BYTES)), 36)
  return bytes
}

const ANOTHER_FILE = new Set(['regular-file', 'magic'])
const OTHER_KIND =
  'Is it another file, such as a working set or the memory file? If not, record it again.'

/**
 * Reads an open file, which may be anything: nothing but its header before that is checked.
 *
 * @throws ReapTraceError `ERR_TRACE_INVALID`: a rule of the format is broken.
 */
export async function decodeTrace(path: string, file: FileHandle): Promise<TraceFileContent> {
  const rule = (kept: boolean, check: string, offset: number, what: string) => {
    if (kept) return
    throw new ReapTraceError(
      'ERR_TRACE_INVALID',
      `${path} is not a valid trace file: ${what} (check ${check}, at byte ${offset})`,
      { path, check, offset, hint: ANOTHER_FILE.has(check) ? OTHER_KIND : 'Record it again.' },
    )
  }
  const stats = await file.stat()
  rule(stats.isFile(), 'regular-file', 0, 'it is not a regular file')
  const bytes = Buffer.alloc(HEADER_BYTES)
  const length = await readWhole(file, bytes, 0)
  const hasMagic = length >= 8 && bytes.readBigUInt64LE(0) === MAGIC
  rule(hasMagic, 'magic', 0, 'it does not begin with "REAPTRCE"')
  rule(length === HEADER_BYTES, 'truncated', length, 'it ends in its header')
  const [major, minor] = [bytes.readUInt16LE(8), bytes.readUInt16LE(10)]
  const isKnown = major === MAJOR && minor <= MINOR
  rule(isKnown, 'version', 8, `its version is ${major}.${minor}, not ${MAJOR}.${MINOR}`)
  const header = Buffer.from(bytes)
  const checksum = header.readUInt32LE(36)
  header.writeUInt32LE(0, 36)
  rule(crc32c(header) === checksum, 'header-checksum', 36, 'the checksum of its header is wrong')
  const used = header.findIndex((byte, offset) => offset >= 40 && byte !== 0)
  rule(used < 0, 'reserved', used, 'a reserved byte is not zero')

  const pageSize = header.readUInt32LE(12)
  const memoryBytes = Number(header.readBigUInt64LE(16))
  const count = header.readUInt32LE(24)
  const written = header.readUInt32LE(28)
  const isPageSize = pageSize === PAGE || pageSize === HUGE_PAGE
  rule(isPageSize, 'page-size', 12, `its guest has pages of ${pageSize} bytes`)
  const isMemory = memoryBytes > 0 && memoryBytes <= MAX_MEMORY && memoryBytes % pageSize === 0
  rule(isMemory, 'memory-bytes', 16, "the size of its guest's memory is invalid")
  rule(count <= memoryBytes / pageSize, 'touches', 24, 'it has more touches than pages')
  rule(written <= count + 1, 'written-touches', 28, 'more of its pages are written than touched')
  const size = HEADER_BYTES + count * TOUCH_BYTES
  rule(stats.size >= size, 'truncated', stats.size, `it should have ${size} bytes`)
  rule(stats.size === size, 'file-bytes', size, `it has ${stats.size} bytes, not ${size}`)
  const touches = new Uint32Array(2 * count)
  const table = new Uint8Array(touches.buffer)
  const end = HEADER_BYTES + (await readWhole(file, table, HEADER_BYTES))
  rule(end === size, 'truncated', end, `it should have ${size} bytes`)
  const isSound = crc32c(table) === header.readUInt32LE(32)
  rule(isSound, 'touches-checksum', 32, 'the checksum of its touches is wrong')
  return {
    pageSize,
    memoryBytes,
    touches,
    writtenShare: written === 0 || count === 0 ? undefined : (written - 1) / count,
  }
}
