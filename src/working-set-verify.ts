import { type FileHandle, open } from 'node:fs/promises'
import { ReapTraceError } from './errors.js'
import { ioError, readWhole } from './files.js'
import { MemoryFile } from './memory-file.js'
import { crc32c } from './native.js'
import { checkSize } from './snapshot.js'
import { PAGE } from './trace.js'
import { countOf, extentAt, groupAt, type WorkingSetFile } from './working-set-file.js'
import type { Progress } from './working-set-writer.js'

/** A page of a working set that is not the memory file's. */
export interface Mismatch {
  /** Number of the 4 KiB page. */
  readonly page: number
  /** Where it begins in the memory file. */
  readonly offset: number
}

/** What a full comparison found. */
export interface VerifyResult {
  /** 4 KiB pages compared: all of the set, also the zero ones. */
  readonly pages: number
  readonly identical: boolean
  /** How many of `pages` differ. */
  readonly mismatchedPages: number
  /** The first 16 of them in the order of the file. */
  readonly mismatches: readonly Mismatch[]
}

const MOST_MISMATCHES = 16

/** Compares every page of a working-set file with the memory file. */
export async function verifyWorkingSetFile(
  set: WorkingSetFile,
  memoryPath: string,
  signal: AbortSignal | undefined,
  onProgress: ((progress: Progress) => void) | undefined,
): Promise<VerifyResult> {
  signal?.throwIfAborted()
  const memory = await MemoryFile.open(memoryPath)
  let file: FileHandle | undefined
  try {
    checkSize(memoryPath, memory.bytes, set.memoryBytes)
    file = await open(set.path).catch((error: unknown) => {
      throw ioError('read', set.path, error)
    })
    const totalPages = set.dataPages + set.zeroPages
    const mismatches: Mismatch[] = []
    let mismatchedPages = 0
    let done = 0
    for (let i = 0; i < countOf(set).groups; i++) {
      signal?.throwIfAborted()
      const { pages, bytes: stored } = await readGroup(set, i, file)
      const actual = Buffer.allocUnsafe(stored.length)
      await memory.readPages(pages, actual)
      // One comparison answers for nearly every group; page by page only where it says no.
      if (!actual.equals(stored)) {
        pages.forEach((page, slot) => {
          const [from, to] = [slot * PAGE, (slot + 1) * PAGE]
          if (actual.subarray(from, to).equals(stored.subarray(from, to))) return
          mismatchedPages++
          if (mismatches.length < MOST_MISMATCHES) mismatches.push({ page, offset: page * PAGE })
        })
      }
      done += pages.length
      onProgress?.({ pages: done, totalPages })
    }
    return { pages: done, identical: mismatchedPages === 0, mismatchedPages, mismatches }
  } finally {
    await file?.close()
    await memory.close()
  }
}

/** The pages of a group in the order of its extents, and their bytes, zeros included. */
async function readGroup(
  set: WorkingSetFile,
  index: number,
  file: FileHandle,
): Promise<{ pages: Uint32Array; bytes: Buffer }> {
  const group = groupAt(set.groups, index)
  const data = Buffer.allocUnsafe(group.dataBytes)
  const done = await readWhole(file, data, group.dataOffset).catch((error: unknown) => {
    throw ioError('read', set.path, error)
  })
  if (done < data.length) {
    throw damaged(set.path, 'truncated', group.dataOffset + done, 'it ends there')
  }
  if (crc32c(data) !== group.checksum) {
    throw damaged(set.path, 'group-checksum', group.dataOffset, 'the checksum of a group is wrong')
  }
  const extents = Array.from({ length: group.extentCount }, (_, i) =>
    extentAt(set.extents, group.firstExtent + i),
  )
  const pages = extents.flatMap(({ firstPage, pageCount }) =>
    Array.from({ length: pageCount }, (_, i) => firstPage + i),
  )
  const bytes = Buffer.alloc(pages.length * PAGE)
  let from = 0
  let to = 0
  for (const { pageCount, zero } of extents) {
    if (!zero) from += data.copy(bytes, to, from, from + pageCount * PAGE)
    to += pageCount * PAGE
  }
  return { pages: Uint32Array.from(pages), bytes }
}

const damaged = (path: string, check: string, offset: number, what: string) =>
  new ReapTraceError(
    'ERR_WORKING_SET_INVALID',
    `${path} is damaged: ${what} (check ${check}, at byte ${offset})`,
    { path, check, offset, hint: 'Record it again.' },
  )
