import { ReapTraceError } from '../errors.js'
import { compareInBackground, staleError } from '../working-set/comparison.js'
import { writeWorkingSetFile } from '../working-set/file/write.js'
import { internalsOf } from '../working-set/internals.js'
import type { OpenSnapshot } from '../working-set/open.js'
import type { WorkingSet } from '../working-set/working-set.js'
import type { ServeOptions, WorkingSetComparison } from './fault-handler.js'

export type StalePolicy = NonNullable<ServeOptions['onStaleWorkingSet']>

export const stalePolicyOf = ({
  onStaleWorkingSet,
  onBadWorkingSet,
}: Pick<ServeOptions, 'onStaleWorkingSet' | 'onBadWorkingSet'>): StalePolicy =>
  onStaleWorkingSet ?? (onBadWorkingSet === 'fail' ? 'fail' : 'warn')

/**
 * Compares an unproven set with the memory file after a restore, and rewrites it if it is stale and
 * the policy says so.
 *
 * @param warn called if the set is newly found stale, and if it cannot be written.
 * @returns `undefined` if no comparison is needed.
 * @throws ReapTraceError as `WorkingSet.verify()` does.
 * @throws the reason of the signal when it aborts.
 */
export async function compareAfterRestore(
  { set, stale, provenBy }: OpenSnapshot,
  options: Pick<ServeOptions, 'snapshot' | 'signal'>,
  policy: StalePolicy,
  warn: (error: ReapTraceError) => void,
): Promise<WorkingSetComparison | undefined> {
  const { memoryFile } = options.snapshot
  const file = set && internalsOf(set).file
  if (!file || provenBy === 'snapshot-id' || (stale && policy !== 'rewrite')) return undefined
  const result = await compareInBackground(file, memoryFile, options.signal)
  if (!result.identical && !stale) {
    warn(staleError(file.path, memoryFile, result.mismatchedPageCount))
  }
  if (policy !== 'rewrite' || (!stale && result.identical)) return { ...result, rewritten: false }
  const rewritten = await rewrite(set, options).then(
    () => true,
    (error) => {
      if (!(error instanceof ReapTraceError)) throw error
      warn(error)
      return false
    },
  )
  return { ...result, rewritten }
}

/** Rewrites the set's file with the same pages and the current bytes of the memory file. */
async function rewrite(
  set: WorkingSet,
  { snapshot, signal }: Pick<ServeOptions, 'snapshot' | 'signal'>,
): Promise<void> {
  const { file, diskTouches } = internalsOf(set)
  const { path, disks, manifest, stamp } = file!
  await writeWorkingSetFile(path, {
    order: set.order,
    runs: set.runCount,
    snapshot,
    disks,
    diskTouches,
    replaces: stamp,
    label: manifest.label,
    signal,
    onProgress: undefined,
  })
}
