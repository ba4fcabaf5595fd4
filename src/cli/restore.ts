import type { RestoreArguments } from './program.js'
import { progress, ServedSession } from './served-session.js'
import type { Terminal } from './terminal.js'

export function restore(args: RestoreArguments, terminal: Terminal): Promise<void> {
  const { workingSet, onBadWorkingSet } = args
  const options = { workingSet, onBadWorkingSet, record: false }
  return ServedSession.run(args, options, terminal, async (session) => {
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
  })
}
