import { isWorkingSetError } from '../../errors.js'
import { bringIn } from '../../page-cache/prefetch.js'
import { planRestore } from '../../restore/prepare.js'
import { readOnce } from '../../working-set/open.js'
import type { RestoreArguments } from '../arguments/program.js'
import { progress, ServedSession } from '../session/served-session.js'
import { errorFields } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { noteOtherDisks, restoreByPageCache } from './page-cache.js'

export async function restore(args: RestoreArguments, terminal: Terminal): Promise<void> {
  if (args.backend === 'uffd') return restoreByHandler(args, terminal)
  if (args.backend === 'page-cache') return restoreByPageCache(args, terminal)
  const {
    memory: memoryFile,
    socket: socketPath,
    workingSet,
    backend,
    vcpus,
    onBadWorkingSet,
  } = args
  const plan = await planRestore({
    memoryFile,
    socketPath,
    workingSet,
    backend,
    vcpus,
    onBadWorkingSet,
  })
  const { choice, reason } = plan
  terminal.emit({ type: 'chosen', choice, reason, estimates: plan.estimates ?? null })
  terminal.print(`chosen: ${choice}, since ${reason}`)
  if (choice === 'uffd') return restoreByHandler(args, terminal)
  return restoreByPageCache(args, terminal)
}

async function restoreByHandler(args: RestoreArguments, terminal: Terminal): Promise<void> {
  const { workingSet, onBadWorkingSet, onStaleWorkingSet, snapshotId, disks } = args
  const options = { workingSet, onBadWorkingSet, onStaleWorkingSet, snapshotId, record: false }
  await ServedSession.run(args, options, terminal, async (session) => {
    const ending = new AbortController()
    const disksBrought =
      disks.length === 0 ? undefined : bringDisks(workingSet, disks, terminal, ending.signal)
    const live = terminal.live(() =>
      session.isConnected
        ? `serving · ${progress(session.handler.stats())} · Ctrl-C detaches the VM`
        : 'waiting for a VMM',
    )
    try {
      await session.serveOn()
    } finally {
      ending.abort()
      await disksBrought
      live.stop()
    }
  })
}

/** The disk images' part of a restore; what it fails with is slower and otherwise the same. */
async function bringDisks(
  workingSet: string,
  disks: readonly string[],
  terminal: Terminal,
  signal: AbortSignal,
): Promise<void> {
  const warn = (error: unknown, consequence: string) => {
    terminal.emit({ type: 'warning', error: errorFields(error) })
    terminal.warn(error, consequence)
  }
  try {
    const set = await readOnce(workingSet)
    noteOtherDisks(set.disks.length, disks, terminal)
    const diskImages = disks.slice(0, set.disks.length)
    const wishes = { memoryFile: undefined, diskImages, budgetBytes: undefined, signal }
    const { error } = await bringIn(set, wishes)
    if (error) warn(error, 'the guest reads that image itself')
  } catch (error) {
    // A set that cannot be used was reported by the session.
    if (!signal.aborted && !isWorkingSetError(error))
      warn(error, 'the guest reads its disks itself')
  }
}
