import type { Progress } from '../../index.js'
import { serve, WorkingSet } from '../../index.js'
import type { RecordArguments } from '../arguments/arguments.js'
import {
  progress,
  ServedSession,
  type SessionOptions,
  stopwatch,
} from '../session/served-session.js'
import { Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatShare } from '../terminal/units.js'
import { checkOutput } from './check-output.js'
import { checkRecording } from './check-recording.js'
import { recordByPageCache } from './page-cache.js'
import { describeSize } from './write-set.js'

export async function record(args: RecordArguments, terminal: Terminal): Promise<void> {
  await checkOutput(args.output, args)
  if (args.backend === 'page-cache') return recordByPageCache(args, terminal)
  let failure: unknown
  const open = async (options: SessionOptions) => ({
    handler: await serve({ ...options, snapshot: { memoryFile: args.memory }, record: true }),
  })
  await ServedSession.run(args, open, terminal, async (session) => {
    await untilRecorded(session, args, terminal, 'the recording is not written')
    let share: number | undefined = 0
    const live = terminal.live(() =>
      share === undefined
        ? `serving · ${progress(session.handler.stats())} · Ctrl-C detaches the VM`
        : `writing ${args.output} · ${formatShare(share)}`,
    )
    const writing = new AbortController()
    // The VM is served even if the file cannot be written.
    const written = writeTrace(session, args, terminal, {
      signal: writing.signal,
      onProgress: ({ pageCount, totalPageCount }) => {
        share = pageCount / totalPageCount
      },
    })
      .catch((error) => {
        failure = error
        if (!writing.signal.aborted) terminal.error(error)
      })
      .finally(() => {
        share = undefined
      })
    try {
      await session.serveOn()
    } catch (error) {
      // The user ends the session at once.
      if (error instanceof Interrupted) writing.abort()
      throw error
    } finally {
      await written
      live.stop()
    }
  })
  if (failure !== undefined) throw new AlreadyReported(failure)
}

/** A failure that was already printed. */
export class AlreadyReported extends Error {
  constructor(cause: unknown) {
    super('reported', { cause })
  }
}

/** Waits for the end of a recording: that of COMMAND or of the VM, --for or Ctrl-C. */
export async function untilRecorded(
  session: ServedSession,
  { forMs }: Pick<RecordArguments, 'forMs'>,
  terminal: Terminal,
  consequence: string,
): Promise<void> {
  let time = stopwatch()
  session.handler.connected.then(
    () => {
      time = stopwatch()
    },
    () => {},
  )
  const live = terminal.live(() =>
    session.isConnected
      ? `recording · ${progress(session.handler.stats())} · ${time()}`
      : `waiting for a VMM · ${time()}`,
  )
  if (!session.command && forMs === undefined) terminal.note('Ctrl-C ends the recording')
  try {
    let turn = await session.next({ afterMs: forMs, command: true })
    // A command that starts the VM exits after it; its status tells whether the recording is good.
    if (turn.on === 'vm' && session.command) {
      turn = { on: 'command', end: await endOfCommand(session) }
    }
    if (turn.on === 'command') await session.checkCommand(turn.end, consequence)
    if (turn.on === 'terminated') session.abandon(turn.signal)
    if (turn.on === 'interrupt' && !session.isConnected) session.abandon('SIGINT')
  } finally {
    live.stop()
  }
}

async function endOfCommand(session: ServedSession) {
  const end = await Promise.race([session.command!.ended, session.signals.next()])
  return typeof end === 'string' ? session.abandon(end) : end
}

async function writeTrace(
  session: ServedSession,
  { output, memory, label, snapshotId }: RecordArguments,
  terminal: Terminal,
  control: { signal: AbortSignal; onProgress: (progress: Progress) => void },
): Promise<void> {
  const trace = session.handler.stopRecording()
  checkRecording(trace, `${output} is not written`)
  const set = WorkingSet.fromTraces([trace])
  await set.write(output, { snapshot: { memoryFile: memory, id: snapshotId }, label, ...control })
  const { pageCount, bytes } = set
  const extentCount = set.extents.length
  terminal.emit({ type: 'recorded', path: output, pageCount, extentCount, bytes })
  terminal.print(`recorded ${describeSize(set)} in ${output}`)
}
