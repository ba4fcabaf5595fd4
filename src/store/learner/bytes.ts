import { crc32c } from '../../binding/addon.js'

const NO_TEXT = 2 ** 32 - 1
const CHECKSUM_BYTES = 4

/** Error of an evidence file that is damaged, or of another version. */
export class EvidenceError extends Error {
  override readonly name = 'EvidenceError'
  /** Name of the check that failed. */
  readonly check: string
  /** Byte offset of the invalid data. */
  readonly offset: number

  constructor(message: string, check: string, offset: number) {
    super(`${message} (check ${check}, at byte ${offset})`)
    this.check = check
    this.offset = offset
  }
}

/** Writes little-endian numbers, and a checksum of all of them. */
export class Writer {
  readonly #parts: Uint8Array[] = []

  u32(...values: readonly number[]): void {
    this.column(values, 4)
  }

  f64(...values: readonly number[]): void {
    const part = Buffer.alloc(8 * values.length)
    values.forEach((value, i) => {
      part.writeDoubleLE(value, 8 * i)
    })
    this.#parts.push(part)
  }

  /** Length in bytes, and UTF-8. */
  text(text: string | undefined): void {
    const part = Buffer.from(text ?? '')
    this.u32(text === undefined ? NO_TEXT : part.length)
    this.#parts.push(part)
  }

  /** Numbers of 1, 2 or 4 bytes. */
  column(values: ArrayLike<number>, bytes: 1 | 2 | 4, code = (value: number) => value): void {
    const part = new ARRAYS[bytes](values.length)
    for (let i = 0; i < values.length; i++) part[i] = Math.round(code(values[i]!))
    this.#parts.push(new Uint8Array(part.buffer))
  }

  finish(): Buffer {
    const body = Buffer.concat(this.#parts)
    const checksum = Buffer.alloc(CHECKSUM_BYTES)
    checksum.writeUInt32LE(crc32c(body))
    return Buffer.concat([body, checksum])
  }
}

// Both supported architectures are little-endian.
const ARRAYS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }

/** Reads what {@link Writer} has written. */
export class Reader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  /** @throws EvidenceError if a rule is not kept at the place that was read last. */
  rule(kept: boolean, check: string, message: string): void {
    if (!kept) throw new EvidenceError(message, check, this.#at)
  }

  verifyChecksum(): void {
    const end = this.#bytes.length - CHECKSUM_BYTES
    const isSound =
      end >= 0 && crc32c(this.#bytes.subarray(0, end)) === this.#bytes.readUInt32LE(end)
    if (!isSound) throw new EvidenceError('its checksum is wrong', 'checksum', Math.max(0, end))
  }

  u32(): number {
    return this.#take(4).readUInt32LE()
  }

  /** A number that is neither negative nor infinite. */
  f64(): number {
    const value = this.#take(8).readDoubleLE()
    this.rule(value >= 0 && value < Number.POSITIVE_INFINITY, 'number', 'it has an invalid number')
    return value
  }

  text(): string | undefined {
    const length = this.u32()
    return length === NO_TEXT ? undefined : this.#take(length).toString()
  }

  column(count: number, bytes: 1 | 2 | 4): Uint8Array | Uint16Array | Uint32Array {
    // A copy, since columns need not begin at a multiple of their size.
    return new ARRAYS[bytes](Uint8Array.from(this.#take(count * bytes)).buffer)
  }

  end(): void {
    this.rule(this.#at === this.#bytes.length - CHECKSUM_BYTES, 'file-bytes', 'it is too long')
  }

  #take(length: number): Buffer {
    const isThere = this.#at + length <= this.#bytes.length
    this.rule(isThere, 'truncated', 'it ends too soon')
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }
}
