import { type BigIntStats, constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { ReapTraceError } from '../errors.js'
import { describeCall, readWhole } from '../files.js'
import { PAGE } from '../page.js'
import {
  contentKey,
  type FileStamp,
  keepsTimes,
  stampKey,
  stampOf,
  untilSettled,
} from './file-stamp.js'

/** A memory file open for reading. */
export class MemoryFile {
  readonly path: string
  readonly bytes: number
  readonly #file: FileHandle
  /** State when opened, or once settled. */
  #before: BigIntStats

  private constructor(path: string, file: FileHandle, opened: BigIntStats) {
    this.path = path
    this.bytes = Number(opened.size)
    this.#file = file
    this.#before = opened
  }

  /** @throws ReapTraceError `ERR_SOURCE_READ`: it cannot be opened, or is not a memory file. */
  static async open(path: string): Promise<MemoryFile> {
    let file: FileHandle | undefined
    try {
      // Without O_NONBLOCK, opening a named pipe would wait for a writer.
      file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
      const opened = await file.stat({ bigint: true })
      checkShape(path, opened)
      return new MemoryFile(path, file, opened)
    } catch (error) {
      await file?.close()
      throw readError(path, error)
    }
  }

  /**
   * Reads 4 KiB pages, in any order, into `buffer` in the order given.
   *
   * @throws ReapTraceError `ERR_SOURCE_READ`: the system call failed, or the file ends inside a
   * page.
   */
  async readPages(pages: Uint32Array, buffer: Buffer): Promise<void> {
    // Shared by the lanes, and sorted by address to benefit from read-ahead.
    const spans = planSpans(pages).values()
    const lanes = Array.from({ length: READS_AT_ONCE }, async () => {
      const bytes = Buffer.allocUnsafe(SPAN_PAGES * PAGE)
      for (const span of spans) {
        await this.#read(bytes.subarray(0, span.pageCount * PAGE), span.firstPage * PAGE)
        for (const place of span.places) {
          const from = (pages[place]! - span.firstPage) * PAGE
          bytes.copy(buffer, place * PAGE, from, from + PAGE)
        }
      }
    })
    // Waits for all lanes: no read may continue after close().
    const results = await Promise.allSettled(lanes)
    for (const result of results) if (result.status === 'rejected') throw result.reason
  }

  async #read(bytes: Buffer, offset: number): Promise<void> {
    const done = await readWhole(this.#file, bytes, offset).catch((error: unknown) => {
      throw readError(this.path, error, offset)
    })
    if (done === bytes.length) return
    const end = offset + done
    throw new ReapTraceError(
      'ERR_SOURCE_READ',
      `the memory file ${this.path} ends at byte ${end}, inside its ${this.bytes} bytes`,
      { path: this.path, check: 'short-read', offset: end, hint: 'It was truncated while in use.' },
    )
  }

  /** See `contentKey()`. */
  get contentKey(): string {
    return contentKey(this.#before)
  }

  /** Whether `path` names this file. */
  async isAt(path: string): Promise<boolean> {
    const there = await stat(path, { bigint: true }).catch(() => undefined)
    return there?.dev === this.#before.dev && there.ino === this.#before.ino
  }

  /**
   * Waits until the timestamps reveal every later write, at most one tick of the kernel's clock.
   *
   * @returns false if they do not.
   */
  async untilSettled(): Promise<boolean> {
    this.#before = await this.#file.stat({ bigint: true })
    return (await keepsTimes(this.path)) && untilSettled(this.#file.fd, this.#before)
  }

  /**
   * Checks that the file was not modified since it was opened.
   *
   * @returns its state, or `undefined` if only its status changed.
   * @throws ReapTraceError `ERR_SOURCE_READ`: the file was modified.
   */
  async checkUnchanged(): Promise<FileStamp | undefined> {
    const [before, now] = [this.#before, await this.#file.stat({ bigint: true })]
    if (now.size === before.size && now.mtimeNs === before.mtimeNs) {
      return stampKey(now) === stampKey(before) ? stampOf(now) : undefined
    }
    throw new ReapTraceError(
      'ERR_SOURCE_READ',
      `the memory file ${this.path} changed while it was read`,
      {
        path: this.path,
        check: 'changed',
        hint: 'A snapshot must not be modified: map it privately in the VMM.',
      },
    )
  }

  /** Writes the dirty pages of the file to the disk. */
  async sync(): Promise<void> {
    await this.#file.datasync()
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

/** A single read that covers several requested pages. */
interface Span {
  firstPage: number
  pageCount: number
  /** Indices into the requested pages. */
  places: number[]
}

const READS_AT_ONCE = 4
const SPAN_PAGES = 64
// Reading an unneeded page takes about 1 us, another call about 20 us.
const BRIDGED_PAGES = 16

function planSpans(pages: Uint32Array): Span[] {
  const spans: Span[] = []
  let span: Span | undefined
  for (const place of Uint32Array.from(pages.keys()).sort((a, b) => pages[a]! - pages[b]!)) {
    const page = pages[place]!
    const end = span ? span.firstPage + span.pageCount : 0
    if (!span || page - end > BRIDGED_PAGES || page - span.firstPage >= SPAN_PAGES) {
      span = { firstPage: page, pageCount: 1, places: [] }
      spans.push(span)
    }
    span.pageCount = page - span.firstPage + 1
    span.places.push(place)
  }
  return spans
}

export function readError(
  path: string,
  error: unknown,
  offset?: number,
  what = 'memory file',
): unknown {
  if (error instanceof ReapTraceError || !(error instanceof Error)) return error
  const { errno, syscall } = error as NodeJS.ErrnoException
  const { cause, hint } = describeCall(error, 'read')
  const where = offset === undefined ? '' : ` at offset ${offset}`
  return new ReapTraceError(
    'ERR_SOURCE_READ',
    `cannot read the ${what} ${path}${where}: ${cause}`,
    {
      path,
      errno,
      syscall,
      offset,
      hint,
      cause: error,
    },
  )
}

/** @throws ReapTraceError `ERR_SOURCE_READ` if it cannot be a memory file. */
export function checkShape(path: string, stats: Pick<BigIntStats, 'isFile' | 'size'>): void {
  if (!stats.isFile()) throw noMemoryFile(path, 'regular-file', 'is not a regular file')
  checkMemoryBytes(path, Number(stats.size))
}

/** @throws ReapTraceError `ERR_SOURCE_READ` for an invalid size of a memory file. */
export function checkMemoryBytes(path: string, bytes: number): void {
  if (bytes === 0) throw noMemoryFile(path, 'empty', 'is empty')
  if (bytes % PAGE === 0) return
  throw noMemoryFile(path, 'page-multiple', `has ${bytes} bytes, not a multiple of ${PAGE}`)
}

const noMemoryFile = (path: string, check: string, what: string) =>
  new ReapTraceError('ERR_SOURCE_READ', `the memory file ${path} ${what}`, {
    path,
    check,
    hint: "Pass the snapshot's guest memory file (Firecracker's mem_file_path).",
  })
