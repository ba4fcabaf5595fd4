import { ReapTraceError } from '../errors.js'
import { checkOptions, print, rules } from '../options.js'
import { PAGE } from '../page.js'
import { internalsOf, type SetInternals } from './internals.js'
import { checkDiskRuns, mergeDisks, mergeTraces } from './merge.js'
import { checkSameSnapshot } from './same-snapshot.js'
import { separate, Trace } from './trace.js'
import { WorkingSet } from './working-set.js'

/** Options of {@link mergeWorkingSets}. */
export interface MergeSetsOptions {
  /**
   * Minimum number of sets that must contain a page to keep it.
   * @default the number of sets
   */
  readonly minSets?: number | undefined
}

/**
 * Merges working sets of one snapshot, each with the same weight, as
 * {@link WorkingSet.fromTraces} merges traces. The result has no file: `write()` takes its bytes
 * from the memory file. Its `runCount` is the number of runs of all sets.
 *
 * @throws TypeError without sets, or if `minSets` is not between 1 and their number.
 * @throws ReapTraceError `ERR_SNAPSHOT_MISMATCH`: the sets differ in `memoryBytes`, `pageSize` or
 * their disks (`check` is `size`, `page-size` or `disks`), so they are not of one snapshot.
 */
export function mergeWorkingSets(
  sets: Iterable<WorkingSet>,
  options: MergeSetsOptions = {},
): WorkingSet {
  const [first, ...rest] = setsOf(sets)
  if (!first) throw new TypeError('mergeWorkingSets() expects at least one working set, got none')
  const all = [first, ...rest] as const
  checkOptions('mergeWorkingSets()', options, {
    minSets: {
      expected: `an integer from 1 to ${all.length}, the number of working sets`,
      accepts: (value) =>
        rules.count.accepts(value) && (value as number) >= 1 && (value as number) <= all.length,
    },
  })
  checkSameSnapshot(all)
  const minSets = options.minSets ?? all.length
  const disks = disksOf(all)
  return WorkingSet.fromRuns({
    order: mergeTraces([first.order, ...rest.map(({ order }) => order)], minSets),
    runs: all.reduce((sum, { runCount }) => sum + runCount, 0),
    ...mergeDisks(checkDiskRuns(disks, all.length), minSets),
  })
}

function setsOf(sets: Iterable<WorkingSet>): WorkingSet[] {
  if (typeof sets === 'string' || typeof sets?.[Symbol.iterator] !== 'function') {
    throw new TypeError(`mergeWorkingSets() expects an array of working sets, got ${print(sets)}`)
  }
  return Array.from(sets, (set) => {
    if (set instanceof WorkingSet) return set
    throw new TypeError(`mergeWorkingSets() expects working sets, got ${print(set)}`)
  })
}

/** For each disk the traces of all sets. */
function disksOf(sets: readonly [WorkingSet, ...WorkingSet[]]): Trace[][] {
  const ofSets = sets.map((set) => tracesOfDisks(internalsOf(set)))
  const [first] = ofSets as [Trace[], ...Trace[][]]
  for (const [i, disks] of ofSets.entries()) {
    const isSame =
      disks.length === first.length &&
      disks.every(({ memoryBytes }, disk) => memoryBytes === first[disk]!.memoryBytes)
    if (isSame) continue
    const { path = 'a working set' } = internalsOf(sets[i]!).file ?? {}
    throw new ReapTraceError(
      'ERR_SNAPSHOT_MISMATCH',
      `${path} has other disk images than the first set, in number or in size`,
      { path, check: 'disks', hint: 'Merge sets that were recorded with the same disk images.' },
    )
  }
  return first.map((_, disk) => ofSets.map((disks) => disks[disk]!))
}

function tracesOfDisks({ disks, diskTouches }: SetInternals): Trace[] {
  let next = 0
  return disks.map(({ bytes, pages }) => {
    const touches = diskTouches.subarray(next, next + 2 * pages)
    next += 2 * pages
    const memoryBytes = Math.ceil(bytes / PAGE) * PAGE
    return new Trace({ pageSize: PAGE, memoryBytes, ...separate(touches) })
  })
}
