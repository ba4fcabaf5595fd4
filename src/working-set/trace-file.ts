import { crc32c } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
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

const OTHER_KIND =
  'Is it another file, such as a working set or the memory file? If not, record it again.'

/** @throws ReapTraceError `ERR_TRACE_INVALID`: a rule of the format is broken. */
export function decodeTrace(path: string, bytes: Buffer): TraceFileContent {
  const rule = (kept: boolean, check: string, offset: number, what: string) => {
    if (kept) return
    throw new ReapTraceError(
      'ERR_TRACE_INVALID',
      `${path} is not a valid trace file: ${what} (check ${check}, at byte ${offset})`,
      { path, check, offset, hint: check === 'magic' ? OTHER_KIND : 'Record it again.' },
    )
  }
  const hasMagic = bytes.length >= 8 && bytes.readBigUInt64LE(0) === MAGIC
  rule(hasMagic, 'magic', 0, 'it does not begin with "REAPTRCE"')
  rule(bytes.length >= HEADER_BYTES, 'truncated', bytes.length, 'it ends in its header')
  const [major, minor] = [bytes.readUInt16LE(8), bytes.readUInt16LE(10)]
  const isKnown = major === MAJOR && minor <= MINOR
  rule(isKnown, 'version', 8, `its version is ${major}.${minor}, not ${MAJOR}.${MINOR}`)
  const header = Buffer.from(bytes.subarray(0, HEADER_BYTES))
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
  const size = HEADER_BYTES + count * TOUCH_BYTES
  rule(bytes.length >= size, 'truncated', bytes.length, `it should have ${size} bytes`)
  rule(bytes.length === size, 'file-bytes', size, `it has ${bytes.length} bytes, not ${size}`)
  rule(written <= count + 1, 'written-touches', 28, 'more of its pages are written than touched')
  const table = Uint8Array.from(bytes.subarray(HEADER_BYTES))
  const isSound = crc32c(table) === header.readUInt32LE(32)
  rule(isSound, 'touches-checksum', 32, 'the checksum of its touches is wrong')
  return {
    pageSize,
    memoryBytes,
    touches: new Uint32Array(table.buffer),
    writtenShare: written === 0 || count === 0 ? undefined : (written - 1) / count,
  }
}
