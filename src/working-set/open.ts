import { LRUCache } from 'lru-cache'
import { type NativeFiles, native, openFiles } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { PAGE } from '../page.js'
import { checkSize, RECORD_AGAIN } from '../snapshot/disk-image.js'
import { type FileStamp, isSettledStamp } from '../snapshot/file-stamp.js'
import { checkMemoryBytes } from '../snapshot/memory-file.js'
import { compareOnce, staleError } from './comparison.js'
import { findingIn, proofFolder } from './findings.js'
import { internalsOf } from './internals.js'
import { WorkingSet } from './working-set.js'

/** Kind of proof that the memory file holds the bytes of a working set. */
export type ProofKind = 'written' | 'compared' | 'snapshot-id'

/** Page-cache residency of the pages of a working set in the memory file. */
export interface Residency {
  /** Number of 4 KiB pages of the working set. */
  readonly pageCount: number
  /** Number of these missing from the page cache, estimated from samples. */
  readonly missingPageCount: number
  /**
   * Whether the kernel reports residency to this user; if not, one page of each sampled extent was
   * read.
   */
  readonly isVisible: boolean
}

/** Files of a restore, each opened and checked once. */
export interface OpenSnapshot {
  /** Open descriptors, to be passed to a session or to `closeFiles()`. */
  readonly files: NativeFiles
  readonly memory: FileStamp
  readonly set: WorkingSet | undefined
  /**
   * Kind of proof for the bytes of the set, valid while both files are unchanged; without a proof,
   * all bytes come from the memory file.
   */
  readonly provenBy: ProofKind | undefined
  /** The error for a set known to hold the bytes of another snapshot. */
  readonly stale: ReapTraceError | undefined
  /** Whether VMs can share the memory file's page cache; true if residency was not requested. */
  readonly isMappable: boolean
  /** `undefined` if not requested, or without a set. */
  readonly residency: Residency | undefined
}

/**
 * Opens a memory file and its working set in one call on a separate thread, and looks up a proof.
 *
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_UNTRUSTED_FILE`,
 * `ERR_SNAPSHOT_MISMATCH`, or `ERR_SOURCE_READ`.
 */
export async function openSnapshot(
  memoryFile: string,
  workingSet: WorkingSet | string | undefined,
  {
    snapshotId,
    wantsResidency = false,
    isTrusted = false,
  }: {
    readonly snapshotId?: string | undefined
    readonly wantsResidency?: boolean
    /** Whether to use a file to which other users may write. */
    readonly isTrusted?: boolean | undefined
  } = {},
): Promise<OpenSnapshot> {
  const given = workingSet instanceof WorkingSet ? workingSet : undefined
  const path = typeof workingSet === 'string' ? workingSet : given && internalsOf(given).file?.path
  const opened = await openSet(memoryFile, path, given, { wantsResidency, isTrusted })
  const { set, files, memoryStamp, findings, isCurrent } = opened
  const memory = memoryStamp!
  try {
    checkMemoryBytes(memoryFile, Number(memory[2]))
    if (set) checkSize(memoryFile, Number(memory[2]), set.memoryBytes)
  } catch (error) {
    native().closeFiles(files)
    throw error
  }
  const known = set && isCurrent && proofOf(set, findings, memoryFile, memory, snapshotId)
  const { pageCount, missingPageCount, isVisible, isMappable } = opened
  const residency =
    pageCount === undefined
      ? undefined
      : { pageCount, missingPageCount: missingPageCount!, isVisible: isVisible! }
  const unknown = { provenBy: undefined, stale: undefined }
  return { files, memory, set, isMappable, residency, ...unknown, ...known }
}

function proofOf(
  set: WorkingSet,
  findings: Uint8Array | undefined,
  memoryFile: string,
  memory: FileStamp,
  snapshotId: string | undefined,
): Partial<Pick<OpenSnapshot, 'provenBy' | 'stale'>> {
  const { file } = internalsOf(set)
  if (!file) return {}
  const ofSet = file.manifest.snapshotId
  const hasNames = snapshotId !== undefined && ofSet !== undefined
  if (hasNames && snapshotId !== ofSet)
    return { stale: otherSnapshot(file.path, ofSet, snapshotId) }
  // A finding on these files takes precedence over the snapshot id.
  const finding = findingIn(findings, file, memory)
  if (finding && finding.mismatchedPageCount > 0) {
    return { stale: staleError(file.path, memoryFile, finding.mismatchedPageCount) }
  }
  return { provenBy: hasNames ? 'snapshot-id' : finding?.how }
}

/**
 * Compares an unproven set before a restore from it.
 *
 * @returns the snapshot, proven unless a file is too young, or the memory file's timestamps do not
 * reveal every change.
 * @throws ReapTraceError as {@link compareOnce}, and `ERR_SNAPSHOT_MISMATCH` where pages differ.
 */
export async function proveByComparison(
  snapshot: OpenSnapshot,
  memoryFile: string,
  signal: AbortSignal | undefined,
): Promise<OpenSnapshot> {
  const file = snapshot.set && internalsOf(snapshot.set).file
  if (!file || snapshot.provenBy || snapshot.set?.pageSize !== PAGE) return snapshot
  const { result, states } = await compareOnce(file, memoryFile, { when: 'now', signal })
  if (!result.identical) throw staleError(file.path, memoryFile, result.mismatchedPageCount)
  const isSameMemory = states?.memory.join() === snapshot.memory.join()
  return isSameMemory ? { ...snapshot, provenBy: 'compared' } : snapshot
}

const otherSnapshot = (path: string, ofSet: string, given: string) =>
  new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set ${path} is of the snapshot ${JSON.stringify(ofSet)}, not of ${JSON.stringify(given)}`,
    { path, check: 'snapshot-id', hint: RECORD_AGAIN },
  )

/** Working sets by path, without the bytes of their pages. */
const recent = new LRUCache<string, WorkingSet>({
  maxSize: 32 * 2 ** 20,
  // Size of the header and the tables, which stay in memory.
  sizeCalculation: (set) => {
    const { fileBytes, dataPages } = internalsOf(set).file!
    return fileBytes - dataPages * PAGE
  },
})

/** A `given` set is used even if its file has changed; its bytes are then ignored. */
async function openSet(
  memoryFile: string,
  path: string | undefined,
  given: WorkingSet | undefined,
  { wantsResidency = false, isTrusted = false },
) {
  const known = given ?? (path === undefined ? undefined : recent.get(path))
  const opened = await openFiles(memoryFile, path ?? '', {
    known: known && internalsOf(known).file?.tables,
    isGiven: given !== undefined,
    isTrusted: isTrusted || (given && internalsOf(given).file?.isTrusted) === true,
    findingsFolder: path === undefined ? '' : proofFolder(),
    wantsResidency,
  })
  if (path === undefined || !opened.set) return { ...opened, set: known }
  try {
    const set = WorkingSet.fromFile(path, opened.set, opened.facts!, isTrusted)
    recent.delete(path)
    if (isSettledStamp(opened.facts!.stamp)) recent.set(path, set)
    return { ...opened, set }
  } catch (error) {
    native().closeFiles(opened.files)
    throw error
  }
}

/** {@link WorkingSet.read}, cached until the file changes. */
export async function readOnce(path: string, isTrusted: boolean): Promise<WorkingSet> {
  const { files, set } = await openSet('', path, undefined, { isTrusted })
  native().closeFiles(files)
  return set!
}
