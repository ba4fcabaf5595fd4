import { bringIn } from '../page-cache.js'
import { planRestore } from '../prepare-restore.js'
import { restoreByPageCache } from './page-cache.js'
import type { RestoreArguments } from './program.js'
import { progress, ServedSession } from './served-session.js'
import type { Terminal } from './terminal.js'

export async function restore(args: RestoreArguments, terminal: Terminal): Promise<void> {
  if (args.backend === 'uffd') return restoreByHandler(args, terminal)
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
  terminal.emit({ type: 'chosen', choice, reason, estimates: plan.estimates })
  terminal.print(`chosen: ${choice}, since ${reason}`)
  if (choice === 'uffd') return restoreByHandler(args, terminal)
  return restoreByPageCache(args, terminal)
}

async function restoreByHandler(args: RestoreArguments, terminal: Terminal): Promise<void> {
  const { workingSet, onBadWorkingSet, disks } = args
  const options = { workingSet, onBadWorkingSet, record: false }
  await ServedSession.run(args, options, terminal, async (session) => {
    const ending = new AbortController()
    // The disk images' part; what it fails with is slower and otherwise the same.
    const disksBrought =
      disks.length === 0
        ? undefined
        : bringIn(workingSet, {
            memoryFile: undefined,
            diskImages: disks,
            budgetBytes: undefined,
            signal: ending.signal,
          })
            .then(({ error }) => error && terminal.warn(error, 'the guest reads that image itself'))
            .catch((error) => {
              if (!ending.signal.aborted) terminal.warn(error, 'the guest reads its disks itself')
            })
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
