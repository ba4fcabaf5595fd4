import { mergeWorkingSets } from '../../index.js'
import type { MergeArguments } from '../arguments/arguments.js'
import { Signals } from '../session/signals.js'
import { CliError } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatPlural } from '../terminal/units.js'
import { checkOutput } from './check-output.js'
import { readSet } from './read-set.js'
import { describeSize, writeSet } from './write-set.js'

export async function merge(args: MergeArguments, terminal: Terminal): Promise<void> {
  const { files, memory, disks, output, label, snapshotId } = args
  await checkOutput(output, { memory, disks })
  const trust = args.trustWorkingSet
  const sets = await Promise.all(files.map((path) => readSet(path, { trust })))
  const minSets = args.minSets ?? sets.length
  const set = mergeWorkingSets(sets, { minSets })
  if (set.pageCount === 0) {
    throw new CliError(
      'ERR_NOTHING_RECORDED',
      `no page is in ${minSets} of ${formatPlural(sets.length, 'file')}; ${output} is not written`,
      minSets > 1 ? 'Keep pages of fewer files with --min-sets.' : undefined,
    )
  }
  const diskCount = set.disks.length
  if (disks.length !== diskCount) {
    throw new CliError(
      'ERR_SNAPSHOT_MISMATCH',
      `the working sets have ${formatPlural(diskCount, 'disk image')}, and ${disks.length} are given`,
      'Give each with --disk, in the order of the recording.',
    )
  }
  const signals = new Signals()
  const snapshot = { memoryFile: memory, diskImages: disks, id: snapshotId }
  try {
    await writeSet(set, output, { snapshot, label }, signals, terminal)
  } finally {
    signals.dispose()
  }
  const { pageCount, bytes, runCount } = set
  const extentCount = set.extents.length
  terminal.emit({
    path: output,
    files: sets.map(({ pageCount }, i) => ({ path: files[i], pageCount })),
    minSets,
    runCount,
    pageCount,
    extentCount,
    bytes,
  })
  terminal.print(`merged ${formatPlural(sets.length, 'file')}: ${describeSize(set)} in ${output}`)
}
