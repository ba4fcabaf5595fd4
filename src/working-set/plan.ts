import { stat } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { ReapTraceError } from '../errors.js'
import { checkSize, RECORD_AGAIN, statMemoryFile } from '../snapshot/disk-image.js'
import { type FileStamp, isSettled, keyOfStamp, stampKey, stampOf } from '../snapshot/file-stamp.js'
import { compareOnce, staleError } from './comparison.js'
import { findingOf } from './findings.js'
import { fileOf, WorkingSet } from './working-set.js'

/** How it is known that the memory file holds the bytes of a working set. */
export type ProofKind = 'written' | 'compared' | 'snapshot-id'

/** A working set that is sound and fits the memory file, as the engine takes it. */
export interface CheckedPlan {
  /** The working-set file; empty for a set that is in none. */
  readonly path: string
  readonly pageSize: number
  /** The tables, byte for byte. */
  readonly groups: Uint8Array
  readonly extents: Uint8Array
  readonly set: WorkingSet
  /**
   * The stamps of the memory file and of the working-set file. While both files have them, bytes of the
   * set may be installed; without a proof all bytes come from the memory file.
   */
  readonly proof: BigUint64Array | null
  readonly provenBy: ProofKind | undefined
  /** Why it is known that the set holds the bytes of another snapshot. */
  readonly stale: ReapTraceError | undefined
}

/**
 * Reads and checks a working set for this memory file, and looks for a proof.
 *
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`, or
 * `ERR_SOURCE_READ`.
 */
export async function planFor(
  workingSet: WorkingSet | string,
  memoryFile: string,
  snapshotId?: string | undefined,
): Promise<CheckedPlan> {
  const [set, stats] = await Promise.all([
    typeof workingSet === 'string' ? readOnce(workingSet) : workingSet,
    statMemoryFile(memoryFile),
  ])
  checkSize(memoryFile, Number(stats.size), set.memoryBytes)
  const file = fileOf(set)
  const { pageSize } = set
  const unproven = { proof: null, provenBy: undefined, stale: undefined }
  if (!file) return { path: '', pageSize, ...tablesOf(set), set, ...unproven }

  const { path, groups, extents, manifest } = file
  const plan = { path, pageSize, groups, extents, set, ...unproven }
  const memory = stampOf(stats)
  const provenAs = (provenBy: ProofKind) => proven(plan, file.stamp, memory, provenBy)
  const hasNames = snapshotId !== undefined && manifest.snapshotId !== undefined
  if (hasNames && snapshotId !== manifest.snapshotId) {
    return { ...plan, stale: otherSnapshot(path, manifest.snapshotId!, snapshotId!) }
  }
  // What was found out of these very files counts before a name.
  const finding = await findingOf(file, memory)
  if (finding && finding.mismatchedPages > 0) {
    return { ...plan, stale: staleError(path, memoryFile, finding.mismatchedPages) }
  }
  if (hasNames) return provenAs('snapshot-id')
  return finding ? provenAs(finding.how) : plan
}

const proven = (
  plan: CheckedPlan,
  set: FileStamp,
  memory: FileStamp,
  provenBy: ProofKind,
): CheckedPlan => ({ ...plan, proof: BigUint64Array.of(...memory, ...set), provenBy })

/**
 * Compares a set that is not proven before anything is restored from it.
 *
 * @returns the plan, proven unless a file is too young for that, or the memory file's times do not tell of
 * every change.
 * @throws ReapTraceError as {@link compareOnce}, and `ERR_SNAPSHOT_MISMATCH` where pages differ.
 */
export async function proveByComparison(
  plan: CheckedPlan,
  memoryFile: string,
  signal: AbortSignal | undefined,
): Promise<CheckedPlan> {
  const file = fileOf(plan.set)
  if (!file) return plan
  const { result, states } = await compareOnce(file, memoryFile, { when: 'now', signal })
  if (!result.identical) throw staleError(plan.path, memoryFile, result.mismatchedPages)
  return states ? proven(plan, states.set, states.memory, 'compared') : plan
}

const otherSnapshot = (path: string, ofSet: string, given: string) =>
  new ReapTraceError(
    'ERR_SNAPSHOT_MISMATCH',
    `the working set ${path} is of the snapshot ${JSON.stringify(ofSet)}, not of ${JSON.stringify(given)}`,
    { path, check: 'snapshot-id', hint: RECORD_AGAIN },
  )

/** The extents of a set that is in no file, as the engine takes them. */
function tablesOf(set: WorkingSet): { groups: Uint8Array; extents: Uint8Array } {
  const extents = new Uint32Array(4 * set.extents.length)
  set.extents.forEach(({ firstPage, pageCount, rank }, i) => {
    extents.set([firstPage, pageCount, rank, 0], 4 * i)
  })
  return { groups: new Uint8Array(), extents: new Uint8Array(extents.buffer) }
}

/** Working sets by path, each with the state of its file. */
const recent = new LRUCache<string, { readonly state: string; readonly set: WorkingSet }>({
  maxSize: 32 * 2 ** 20,
  // The tables are views of the index as it was read. No size may be 0.
  sizeCalculation: ({ set }) => Math.max(1, fileOf(set)?.extents.buffer.byteLength ?? 0),
})

/** Whether a file was read by this process, perhaps in another state. */
export const wasRead = (path: string): boolean => recent.has(path)

/**
 * {@link WorkingSet.read}, which takes longer than all else that `serve()` does, once for each state
 * of a file. The pages' bytes are not in memory: the engine reads and checks them each time.
 */
export async function readOnce(path: string): Promise<WorkingSet> {
  const stats = await stat(path, { bigint: true }).catch(() => undefined)
  const state = stats && stampKey(stats)
  const there = recent.get(path)
  if (there && there.state === state) return there.set
  recent.delete(path)
  const set = await WorkingSet.read(path)
  // The state before it was read: a later one is another, and so is read again.
  if (stats && state === keyOfStamp(fileOf(set)!.stamp) && isSettled(stats)) {
    recent.set(path, { state: stampKey(stats), set })
  }
  return set
}
