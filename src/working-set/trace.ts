import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { ReapTraceError } from '../errors.js'
import { ioError, replaceFile, writeWhole } from '../files.js'
import { checkOptions, required, rules } from '../options.js'
import { HUGE_PAGE, MAX_MEMORY, PAGE } from '../page.js'
import { decodeTrace, encodeTrace, type TraceFileContent } from './trace-file.js'

/** Options of {@link Trace.read}, {@link WorkingSet.read} and {@link Store.import}. */
export interface ReadOptions {
  /**
   * Whether to read a file that belongs to another user than this one and root, or that its group
   * or others may write to. The file's checksums protect from damage, not from its authors.
   * @default false
   */
  readonly trust?: boolean | undefined
}

export const readRules = { trust: rules.boolean }

/** Fields of a {@link Trace}. */
export interface TraceFields {
  readonly pageSize: number
  readonly memoryBytes: number
  readonly pages: Uint32Array
  readonly timesUs: Uint32Array
  readonly writtenShare?: number | undefined
}

const traceRules = {
  pageSize: required({
    expected: '4096 or 2097152',
    accepts: (value) => value === PAGE || value === HUGE_PAGE,
  }),
  memoryBytes: required({
    expected: 'a positive multiple of 4096, at most 2^42',
    accepts: (value) =>
      rules.count.accepts(value) &&
      (value as number) > 0 &&
      (value as number) <= MAX_MEMORY &&
      (value as number) % PAGE === 0,
  }),
  pages: required({
    expected: 'a Uint32Array',
    accepts: (value) => value instanceof Uint32Array,
  }),
  timesUs: required({
    expected: 'a Uint32Array',
    accepts: (value) => value instanceof Uint32Array,
  }),
  writtenShare: {
    expected: 'a number from 0 to 1',
    accepts: (value: unknown) => typeof value === 'number' && value >= 0 && value <= 1,
  },
}

/** Pages that a guest touched in one run, in first-touch order. */
export class Trace {
  /** Page size of the guest in bytes: 4096 or 2097152. */
  readonly pageSize: number
  /** Size of the guest's memory, and of its memory file, in bytes. */
  readonly memoryBytes: number
  /**
   * Page numbers in the memory file, in units of `pageSize`, in first-touch order, without
   * duplicates.
   */
  readonly pages: Uint32Array
  /** First-touch time of each of `pages`, in microseconds since the VM connected. */
  readonly timesUs: Uint32Array
  /**
   * Share of the pages that the guest had modified by the end of the recording, from 0 to 1.
   * `undefined` if unknown, as in a recording of the page cache.
   */
  readonly writtenShare: number | undefined

  /**
   * @throws TypeError for an invalid field, a page outside the memory, or a duplicate page.
   */
  constructor(fields: TraceFields) {
    checkOptions('Trace', fields, traceRules, 'field')
    const { pageSize, memoryBytes, pages, timesUs } = fields
    if (memoryBytes % pageSize !== 0) {
      throw new TypeError(
        `Expected memoryBytes to be a multiple of pageSize, ${pageSize}, got ${memoryBytes}`,
      )
    }
    if (pages.length !== timesUs.length) {
      throw new TypeError(
        `Expected one time for each page, got ${timesUs.length} times for ${pages.length} pages`,
      )
    }
    const outside = firstOutside(pages, memoryBytes / pageSize)
    if (outside >= 0) {
      throw new TypeError(
        `Expected pages below ${memoryBytes / pageSize}, the end of the memory, got page ${pages[outside]}`,
      )
    }
    const again = firstRepeated(pages)
    if (again >= 0) throw new TypeError(`Expected each page once, got page ${pages[again]} twice`)
    this.pageSize = pageSize
    this.memoryBytes = memoryBytes
    this.pages = pages
    this.timesUs = timesUs
    this.writtenShare = fields.writtenShare
  }

  /**
   * Writes the trace to a file, mode 0600, replacing an existing one atomically. To merge runs of
   * several processes or hosts, read their files and call {@link WorkingSet.fromTraces}.
   *
   * @throws ReapTraceError `ERR_TRACE_IO`: the file cannot be written.
   */
  async write(path: string): Promise<void> {
    checkOptions('Trace.write()', { path }, { path: required(rules.path) }, 'argument')
    const touches = interleave(this.pages, this.timesUs)
    const bytes = encodeTrace({ ...this, touches })
    await replaceFile('trace file', path, (file) => writeWhole(file, bytes, 0))
  }

  /**
   * Reads a trace file.
   *
   * @throws ReapTraceError
   * - `ERR_TRACE_INVALID`: a rule of the format is broken; `check` and `offset` say which and
   *   where,
   * - `ERR_TRACE_IO`: the file cannot be opened or read,
   * - `ERR_UNTRUSTED_FILE`: another user may write to it.
   */
  static async read(path: string, options: ReadOptions = {}): Promise<Trace> {
    checkOptions('Trace.read()', { path }, { path: required(rules.path) }, 'argument')
    checkOptions('Trace.read()', options, readRules)
    const { touches, ...facts } = await readTrace(path, options.trust === true)
    try {
      return new Trace({ ...facts, ...separate(touches) })
    } catch (cause) {
      throw new ReapTraceError(
        'ERR_TRACE_INVALID',
        `${path} is not a valid trace file: ${(cause as Error).message.replace('Expected', 'expected')}`,
        {
          path,
          check: 'touches',
          hint: 'Record it again.',
          cause,
        },
      )
    }
  }
}

async function readTrace(path: string, isTrusted: boolean): Promise<TraceFileContent> {
  let file: FileHandle | undefined
  try {
    // Without O_NONBLOCK, opening a named pipe would wait for a writer.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    const failure = isTrusted ? null : native().checkWriters(file.fd)
    if (failure) throw toError(failure, { tracePath: path })
    return await decodeTrace(path, file)
  } catch (error) {
    throw ioError('trace file', 'read', path, error)
  } finally {
    await file?.close()
  }
}

/** Pairs of a page and its time, the layout of files and of the engine. */
export function interleave(pages: Uint32Array, timesUs: Uint32Array, step = 1): Uint32Array {
  const touches = new Uint32Array(2 * pages.length)
  pages.forEach((page, i) => {
    touches[2 * i] = page * step
    touches[2 * i + 1] = timesUs[i]!
  })
  return touches
}

export function separate(
  touches: Uint32Array,
  step = 1,
): { pages: Uint32Array; timesUs: Uint32Array } {
  const pages = new Uint32Array(touches.length / 2)
  const timesUs = new Uint32Array(touches.length / 2)
  for (let i = 0; i < pages.length; i++) {
    pages[i] = touches[2 * i]! / step
    timesUs[i] = touches[2 * i + 1]!
  }
  return { pages, timesUs }
}

/** Pairs of each page's first 4 KiB page and its time, the layout of the file format. */
export const touchesOf = ({ pages, timesUs, pageSize }: Trace): Uint32Array =>
  interleave(pages, timesUs, pageSize / PAGE)

/** Index of the first duplicate entry, or -1. */
function firstRepeated(pages: Uint32Array): number {
  // A sparse bitmap in chunks of 32768 pages: its size depends on the pages, not on the memory.
  const chunks = new Map<number, Uint8Array>()
  let number = -1
  let chunk: Uint8Array = new Uint8Array()
  for (let i = 0; i < pages.length; i++) {
    const page = pages[i]!
    if (page >>> 15 !== number) {
      number = page >>> 15
      chunk = chunks.get(number) ?? new Uint8Array(4096)
      chunks.set(number, chunk)
    }
    const at = (page >>> 3) & 4095
    const bit = 1 << (page & 7)
    if ((chunk[at]! & bit) !== 0) return i
    chunk[at]! |= bit
  }
  return -1
}

/** Index of the first entry that is not below `limit`, or -1. */
function firstOutside(pages: Uint32Array, limit: number): number {
  return pages.findIndex((page) => page >= limit)
}
