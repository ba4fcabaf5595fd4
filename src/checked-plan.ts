import { ReapTraceError } from './errors.js'
import { checkIdentity, checkSize, type FileStamp, stampOf, statMemoryFile } from './snapshot.js'
import { type Plan, planOf, WorkingSet } from './working-set.js'

/** A working set that is sound, and the memory file that it was held against. */
export interface CheckedPlan extends Plan {
  readonly isFor: FileStamp
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
  const set = typeof workingSet === 'string' ? await WorkingSet.read(workingSet) : workingSet
  const plan = planOf(set)
  if (plan) {
    const { path, pageSize, groups, extents } = plan
    return { path, pageSize, groups, extents, isFor: await checkIdentity(memoryFile, set) }
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
    isFor: stampOf(stats),
  }
}

/** Whether an error is the working set's, so that a restore can go on without it. */
export const isWorkingSetError = (error: unknown): error is ReapTraceError =>
  error instanceof ReapTraceError &&
  ['ERR_WORKING_SET_INVALID', 'ERR_WORKING_SET_IO', 'ERR_SNAPSHOT_MISMATCH'].includes(error.code)
