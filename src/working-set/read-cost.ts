import { native, openFiles } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'
import { checkSize } from '../snapshot/disk-image.js'
import { checkMemoryBytes } from '../snapshot/memory-file.js'
import { modified } from './comparison.js'
import type { SetInternals } from './internals.js'

/** What a restore has to read from one file now. */
export interface FileReadCost {
  /** Size of the set's pages in this file, without those that are not stored. */
  readonly bytes: number
  /**
   * Part of `bytes` in the page cache. `undefined` if the kernel does not tell this user, as for a
   * file of another user; the rest then describes an empty page cache.
   */
  readonly cachedBytes: number | undefined
  /** Number of reads that would wait for the disk. */
  readonly readCount: number
  /**
   * Size of these reads in bytes. It can exceed the missing part of `bytes`: a group of the
   * working-set file is read as a whole.
   */
  readonly readBytes: number
  /**
   * Estimated time that the disk takes for these reads, in milliseconds, from `sample`; 0 without
   * reads, and `undefined` without a sample. A restore takes longer to fetch: it also copies and
   * checks the bytes, and shares the disk and the cores.
   */
  readonly estimatedMs: number | undefined
  /**
   * Some of these reads, done past the page cache, up to four at a time, for about 100 ms or
   * 32 MiB. `undefined` without reads, and on file systems without direct I/O.
   */
  readonly sample:
    | { readonly readCount: number; readonly bytes: number; readonly ms: number }
    | undefined
}

/** Result of {@link WorkingSet.readCost}. */
export interface ReadCost {
  /**
   * The working-set file, from which a restore reads if it is proven. `undefined` for a set without
   * a file, and for a guest with 2 MiB pages, whose restores read the memory file alone.
   */
  readonly workingSet: FileReadCost | undefined
  /** The memory file, from which other restores read. `undefined` if none was given. */
  readonly memoryFile: FileReadCost | undefined
}

/**
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID` (`changed`), `ERR_WORKING_SET_IO`,
 * `ERR_SNAPSHOT_MISMATCH`, or `ERR_SOURCE_READ`.
 */
export async function findReadCost(
  { handle, file }: SetInternals,
  memoryBytes: number,
  memoryFile = '',
): Promise<ReadCost> {
  // Trusted, since only its size and its place on the disk matter.
  const opened = await openFiles(memoryFile, file?.path ?? '', { known: handle, isTrusted: true })
  try {
    if (file && opened.set) throw modified(file.path)
    if (opened.memoryStamp) {
      const bytes = Number(opened.memoryStamp[2])
      checkMemoryBytes(memoryFile, bytes)
      checkSize(memoryFile, bytes, memoryBytes)
    }
    const costs = await native().readCosts(opened.files, handle)
    if (isFailure(costs)) throw toError(costs, {})
    const [ofSet, ofMemory] = costs
    return { workingSet: describe(ofSet), memoryFile: describe(ofMemory) }
  } finally {
    native().closeFiles(opened.files)
  }
}

function describe(figures: Float64Array | null): FileReadCost | undefined {
  if (!figures) return undefined
  const [bytes, isVisible, cachedBytes, readCount, readBytes, ...sampled] = figures
  const [sampleCount, sampleBytes, sampleUs] = sampled
  const isSampled = sampleBytes! > 0
  const ms = sampleUs! / 1000
  return {
    bytes: bytes!,
    cachedBytes: isVisible ? cachedBytes! : undefined,
    readCount: readCount!,
    readBytes: readBytes!,
    estimatedMs: readCount === 0 ? 0 : isSampled ? (ms * readBytes!) / sampleBytes! : undefined,
    sample: isSampled ? { readCount: sampleCount!, bytes: sampleBytes!, ms } : undefined,
  }
}
