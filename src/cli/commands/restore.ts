import { planRestore, type RestorePlan, restore as restorePlanned } from '../../index.js'
import type { RestoreArguments } from '../arguments/program.js'
import { progress, ServedSession } from '../session/served-session.js'
import { errorFields } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { restoreFromPageCache } from './page-cache.js'

export async function restore(args: RestoreArguments, terminal: Terminal): Promise<void> {
  const { memory, disks, workingSet, backend, vcpus, onBadWorkingSet, snapshotId } = args
  const plan = await planRestore({
    snapshot: { memoryFile: memory, diskImages: disks, id: snapshotId },
    workingSet,
    backend,
    vcpus,
    onBadWorkingSet,
  })
  if (backend === 'auto') {
    terminal.emit({ type: 'chosen', backend: plan.backend, reason: plan.reason })
    terminal.print(`chosen: ${plan.backend} (${plan.reason})`)
  }
  for (const path of plan.refusal ? [] : disks.slice(plan.diskImages.length)) {
    terminal.say(`${path} is not prefetched: the working set was recorded without it`)
  }
  if (plan.backend === 'uffd') return restoreByHandler(plan, args, terminal)
  return restoreFromPageCache(plan, args, terminal)
}

async function restoreByHandler(
  plan: RestorePlan<'uffd'>,
  { onStaleWorkingSet, ...args }: RestoreArguments,
  terminal: Terminal,
): Promise<void> {
  await ServedSession.run(
    args,
    async ({ onEvent, ...options }) => {
      const restored = await restorePlanned(plan, {
        ...options,
        onStaleWorkingSet,
        onEvent: (event) => {
          if (event.type !== 'warning' || !plan.diskImages.includes(event.error.path ?? '')) {
            return onEvent(event)
          }
          terminal.emit({ type: 'warning', error: errorFields(event.error) })
          terminal.warn(event.error, 'the guest reads that image on demand')
        },
      })
      return restored.handler
    },
    terminal,
    async (session) => {
      const live = terminal.live(() =>
        session.isConnected
          ? `serving · ${progress(session.handler.stats())} · Ctrl-C detaches the VM`
          : 'waiting for a VMM',
      )
      try {
        await session.serveOn()
      } finally {
        live.stop()
      }
    },
  )
}
