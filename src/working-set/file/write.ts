import { randomBytes } from 'node:crypto'
import { type FileHandle, stat } from 'node:fs/promises'
import { hostname, release } from 'node:os'
import { basename } from 'node:path'
import { crc32c } from '../../binding/addon.js'
import { ReapTraceError } from '../../errors.js'
import { isSameFile, replaceFile, writeWhole } from '../../files.js'
import { PAGE } from '../../page.js'
import { checkSize, chooseDiskPages, takeDiskIdentity } from '../../snapshot/disk-image.js'
import { type FileStamp, keyOfStamp, stampKey, stampOf } from '../../snapshot/file-stamp.js'
import { MemoryFile } from '../../snapshot/memory-file.js'
import type { Snapshot } from '../../snapshot/snapshot.js'
import { remember } from '../findings.js'
import type { SetInternals } from '../internals.js'
import { type Trace, touchesOf } from '../trace.js'
import {
  dataOffsetFor,
  encodeHead,
  encodeManifest,
  type Group,
  ID_BYTES,
  MAX_GROUP_DATA_PAGES,
  MAX_GROUP_PAGES,
  type Manifest,
  type StoredDisk,
  type StoredExtent,
  shortName,
} from './format.js'

/** Progress of a write or a comparison. */
export interface Progress {
  /** Number of 4 KiB pages done. */
  readonly pageCount: number
  readonly totalPageCount: number
}

export interface WriteJob {
  readonly order: Trace
  readonly runs: number
  readonly snapshot: Snapshot
  readonly disks: readonly StoredDisk[]
  /** Touches of {@link disks}. */
  readonly diskTouches: Uint32Array
  /** The memory file that was restored, by `contentKey()`; `undefined` for any. */
  readonly memory?: string | undefined
  /** State of the file that may be replaced; `undefined` for any. */
  readonly replaces: FileStamp | undefined
  readonly label: string | undefined
  readonly signal: AbortSignal | undefined
  readonly onProgress: ((progress: Progress) => void) | undefined
}

/** Number of pages read together: 4 MiB. */
const WINDOW_PAGES = 1024

/**
 * Writes a working-set file, reading each page of the memory file once, and remembers that both
 * hold the same bytes.
 */
export async function writeWorkingSetFile(path: string, job: WriteJob): Promise<Manifest> {
  const { order, runs, disks, diskTouches, signal, onProgress } = job
  const { memoryFile, id: snapshotId } = job.snapshot
  const manifest: Manifest = {
    createdAt: new Date().toISOString(),
    createdBy: 'reap-trace',
    host: hostname(),
    kernel: release(),
    memoryFile: basename(memoryFile),
    ...(job.label !== undefined && { label: job.label }),
    ...(snapshotId !== undefined && { snapshotId }),
  }
  const manifestBytes = encodeManifest(manifest)
  signal?.throwIfAborted()

  const memory = await MemoryFile.open(memoryFile)
  try {
    checkSize(memoryFile, memory.bytes, order.memoryBytes)
    checkRestored(memory, job.memory)
    if (await memory.isAt(path)) {
      throw new TypeError(`The working set would replace the memory file, ${path}`)
    }
    const isSettled = await memory.untilSettled()
    const step = order.pageSize / PAGE
    const totalPages = order.pages.length * step
    const pageOf = (rank: number) => order.pages[Math.floor(rank / step)]! * step + (rank % step)
    const touches = touchesOf(order)
    const dataOffset = dataOffsetFor(
      totalPages,
      (touches.length + diskTouches.length) / 2,
      disks.length,
      manifestBytes.length,
    )

    const id = randomBytes(ID_BYTES)
    let state: FileStamp | undefined
    let inode: bigint | undefined
    await replaceFile('working-set file', path, async (file) => {
      const groups = new GroupWriter(file, dataOffset)
      const bytes = Buffer.allocUnsafe(WINDOW_PAGES * PAGE)
      for (let rank = 0; rank < totalPages; rank += WINDOW_PAGES) {
        signal?.throwIfAborted()
        const count = Math.min(WINDOW_PAGES, totalPages - rank)
        const pages = Uint32Array.from({ length: count }, (_, i) => pageOf(rank + i))
        await memory.readPages(pages, bytes)
        for (let i = 0; i < count; i++) {
          await groups.add(pages[i]!, bytes.subarray(i * PAGE, (i + 1) * PAGE))
        }
        onProgress?.({ pageCount: rank + count, totalPageCount: totalPages })
      }
      await groups.end()
      state = await memory.checkUnchanged()
      signal?.throwIfAborted()

      const { memoryBytes, pageSize, writtenShare } = order
      const { dataPages } = groups
      const zeroPages = totalPages - dataPages
      const head = encodeHead(
        {
          id,
          pageSize,
          memoryBytes,
          runs,
          touches,
          writtenShare,
          dataPages,
          zeroPages,
          disks,
          diskTouches,
        },
        groups.groups,
        groups.extents,
        manifestBytes,
        dataOffset,
      )
      // Without data the file still ends at dataOffset, past the index.
      await file.truncate(dataOffset + dataPages * PAGE)
      await writeWhole(file, head, 0)
      await checkReplaced(path, job.replaces)
      inode = (await file.stat({ bigint: true })).ino
    })
    // After the rename(), which changes the status. Another writer may already have replaced the
    // file.
    const written = await stat(path, { bigint: true }).catch(() => undefined)
    if (state && isSettled && written && written.ino === inode) {
      const set = { path, id, stamp: stampOf(written) }
      const finding = {
        memoryFile,
        how: 'written',
        mismatchedPageCount: 0,
        mismatches: [],
      } as const
      await remember(set, state, finding, () => memory.sync())
    }
    return manifest
  } finally {
    await memory.close()
  }
}

/** Checks that the path still leads to the memory file that was restored. */
function checkRestored({ path, contentKey }: MemoryFile, restored: string | undefined): void {
  if (restored === undefined || contentKey === restored) return
  throw new ReapTraceError(
    'ERR_SOURCE_READ',
    `the memory file ${path} is no longer the one that was restored`,
    { path, check: 'replaced', hint: 'The next restore of the snapshot writes its set.' },
  )
}

/** Checks that the file to be replaced has not been replaced by another writer. */
async function checkReplaced(path: string, replaces: FileStamp | undefined): Promise<void> {
  if (!replaces) return
  const now = await stat(path, { bigint: true }).catch(() => undefined)
  if (now && stampKey(now) === keyOfStamp(replaces)) return
  throw new ReapTraceError('ERR_WORKING_SET_INVALID', `${path} was modified since it was read`, {
    path,
    check: 'changed',
    hint: 'The newer file is kept.',
  })
}

/** Adds the identity of its image to each disk. */
export async function takeDisks(
  path: string,
  { disks, diskTouches }: Pick<SetInternals, 'disks' | 'diskTouches'>,
  diskImages: readonly string[],
): Promise<StoredDisk[]> {
  const taken: StoredDisk[] = []
  let first = 0
  for (const [i, { bytes, pages }] of disks.entries()) {
    const image = diskImages[i]!
    const ofDisk = diskTouches.subarray(2 * first, 2 * (first + pages))
    const sampled = chooseDiskPages(pages, (place) => ofDisk[2 * place]!)
    const identity = await takeDiskIdentity(image, bytes, sampled)
    if (await isSameFile(path, image)) {
      throw new TypeError(`The working set would replace the disk image, ${path}`)
    }
    taken.push({ name: shortName(basename(image)), pages, ...identity })
    first += pages
  }
  return taken
}

/** Splits pages, added in order of rank, into groups, and writes their data. */
class GroupWriter {
  readonly groups: Group[] = []
  readonly extents: StoredExtent[] = []
  dataPages = 0

  readonly #dataOffset: number
  readonly #file: FileHandle
  #rank = 0
  /** Pages of the current group; `slot` is their index in `staged`. */
  #pages: { readonly page: number; readonly rank: number; readonly slot: number | undefined }[] = []
  #slots = 0
  readonly #staged = Buffer.allocUnsafe(MAX_GROUP_DATA_PAGES * PAGE)
  readonly #sorted = Buffer.allocUnsafe(MAX_GROUP_DATA_PAGES * PAGE)

  constructor(file: FileHandle, dataOffset: number) {
    this.#dataOffset = dataOffset
    this.#file = file
  }

  async add(page: number, bytes: Buffer): Promise<void> {
    const slot = isZero(bytes) ? undefined : this.#slots++
    if (slot !== undefined) bytes.copy(this.#staged, slot * PAGE)
    this.#pages.push({ page, rank: this.#rank++, slot })
    if (this.#slots === MAX_GROUP_DATA_PAGES || this.#pages.length === MAX_GROUP_PAGES) {
      await this.end()
    }
  }

  /** Ends the current group. */
  async end(): Promise<void> {
    if (this.#pages.length === 0) return
    const firstExtent = this.extents.length
    const firstRank = this.#rank - this.#pages.length
    let dataBytes = 0
    let last: { firstPage: number; pageCount: number; rank: number; zero: boolean } | undefined
    for (const { page, rank, slot } of this.#pages.sort((a, b) => a.page - b.page)) {
      const zero = slot === undefined
      if (!zero) {
        this.#staged.copy(this.#sorted, dataBytes, slot * PAGE, (slot + 1) * PAGE)
        dataBytes += PAGE
      }
      if (last && last.zero === zero && last.firstPage + last.pageCount === page) {
        last.pageCount++
        last.rank = Math.min(last.rank, rank)
      } else {
        last = { firstPage: page, pageCount: 1, rank, zero }
        this.extents.push(last)
      }
    }
    const data = this.#sorted.subarray(0, dataBytes)
    const dataOffset = this.#dataOffset + this.dataPages * PAGE
    const extentCount = this.extents.length - firstExtent
    const checksum = crc32c(data)
    this.groups.push({ dataOffset, dataBytes, firstExtent, extentCount, checksum, firstRank })
    this.dataPages += this.#slots
    this.#pages = []
    this.#slots = 0
    await writeWhole(this.#file, data, dataOffset)
  }
}

const zeroPage = Buffer.alloc(PAGE)

const isZero = (page: Buffer): boolean => page.equals(zeroPage)
