import type { BigIntStats } from 'node:fs'
import { stat } from 'node:fs/promises'
import { LRUCache } from 'lru-cache'
import { ReapTraceError } from './errors.js'
import { checkIdentity, checkSize, isSettled, stamp, stampOf, statMemoryFile } from './snapshot.js'
import { type Plan, planOf, WorkingSet } from './working-set.js'

/** A working set that is sound and fits the memory file. */
export interface CheckedPlan extends Plan {
  /**
   * The stamps of the memory file and of the working-set file between which bytes of the set may be
   * installed; without them all bytes come from the memory file.
   */
  readonly proof: BigUint64Array | null
}

/**
 * Reads and checks a working set for this memory file.
 *
 * @throws ReapTraceError `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`, or
 * `ERR_SOURCE_READ`.
 */
export async function planFor(
  workingSet: WorkingSet | string,
  memoryFile: string,
): Promise<CheckedPlan> {
  const set = typeof workingSet === 'string' ? await readOnce(workingSet) : workingSet
  const plan = planOf(set)
  if (plan) {
    const { path, pageSize, groups, extents } = plan
    const file = await stat(path, { bigint: true }).catch(() => undefined)
    const memory = await checkIdentity(memoryFile, set)
    const proof = file ? BigUint64Array.of(...memory, ...stampOf(file)) : null
    return { path, pageSize, groups, extents, proof }
  }
  // Places without bytes: those come from the memory file, which is always the right one.
  const stats = await statMemoryFile(memoryFile)
  checkSize(memoryFile, Number(stats.size), set.memoryBytes)
  const extents = new Uint32Array(4 * set.extents.length)
  set.extents.forEach(({ firstPage, pageCount, rank }, i) => {
    extents.set([firstPage, pageCount, rank, 0], 4 * i)
  })
  return {
    path: '',
    pageSize: set.pageSize,
    groups: new Uint8Array(),
    extents: new Uint8Array(extents.buffer),
    proof: null,
  }
}

/** What was read of files, by path, and in which state of the file. */
const recent = new LRUCache<string, { readonly state: string; readonly set: WorkingSet }>({
  maxSize: 32 * 2 ** 20,
  // The tables are views of the index as it was read. No size may be 0.
  sizeCalculation: ({ set }) => Math.max(1, planOf(set)?.extents.buffer.byteLength ?? 0),
})

/** Whether a file was read by this process, perhaps in another state. */
export const wasRead = (path: string): boolean => recent.has(path)

/**
 * {@link WorkingSet.read}, which takes longer than all else that `serve()` does, once for each state
 * of a file. The pages' bytes are not in memory: the engine reads and checks them each time.
 */
export async function readOnce(path: string): Promise<WorkingSet> {
  const look = (): Promise<BigIntStats | undefined> =>
    stat(path, { bigint: true }).catch(() => undefined)
  const before = await look()
  const state = before && stamp(before)
  const there = recent.get(path)
  if (there && there.state === state) return there.set
  recent.delete(path)
  const set = await WorkingSet.read(path)
  const after = await look()
  if (state && after && stamp(after) === state && isSettled(after)) recent.set(path, { state, set })
  return set
}

/** Whether an error is the working set's, so that a restore can go on without it. */
export const isWorkingSetError = (error: unknown): error is ReapTraceError =>
  error instanceof ReapTraceError &&
  ['ERR_WORKING_SET_INVALID', 'ERR_WORKING_SET_IO', 'ERR_SNAPSHOT_MISMATCH'].includes(error.code)
