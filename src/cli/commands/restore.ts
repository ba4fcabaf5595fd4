import { stat } from 'node:fs/promises'
import { constants } from 'node:os'
import { resolve } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import {
  judgeRestore,
  planRestore,
  ReapTraceError,
  type RestorePlan,
  type RestoreRecord,
  restore as restorePlanned,
  type Verdict,
} from '../../index.js'
import type { RestoreArguments } from '../arguments/arguments.js'
import { progress, ServedSession } from '../session/served-session.js'
import { writeTrace } from '../session/write-trace.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError, errorFields } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { checkOutput } from './check-output.js'
import { restoreFromPageCache, warnOfPrefetch } from './page-cache.js'

export async function restore(args: RestoreArguments, terminal: Terminal): Promise<void> {
  const { memory, disks, workingSet, trustWorkingSet, backend, vcpus, onBadWorkingSet } = args
  const plan = await planRestore({
    snapshot: { memoryFile: memory, diskImages: disks, id: args.snapshotId },
    workingSet,
    trustWorkingSet,
    backend,
    vcpus,
    onBadWorkingSet,
  })
  if (backend === 'auto') {
    terminal.emit({ type: 'planned', backend: plan.backend, reason: plan.reason })
    terminal.print(`planned: ${plan.backend} (${plan.reason})`)
  }
  const { refusal, isWorkingSetMissing } = plan
  if (isWorkingSetMissing) warnOfMissing(workingSet, terminal)
  for (const path of refusal || isWorkingSetMissing ? [] : disks.slice(plan.diskImages.length)) {
    terminal.say(`${path} is not prefetched: the working set was recorded without it`)
  }
  const started = monotonicMs()
  if (args.trace !== undefined) {
    await checkOutput(args.trace, args, { option: '--trace', code: 'ERR_RECORD_IO' })
  }
  return plan.backend === 'uffd'
    ? restoreByHandler(plan, args, started, terminal)
    : restoreFromPageCache(
        await restorePlanned(plan, { onEvent: warnOfPrefetch(terminal) }),
        args,
        started,
        terminal,
      )
}

/** Unlike a caller of the API, this command records nothing: a missing set is a wrong path. */
function warnOfMissing(path: string, terminal: Terminal): void {
  const error = new ReapTraceError(
    'ERR_WORKING_SET_IO',
    `the working-set file ${path} does not exist`,
    {
      path,
      errno: -constants.errno.ENOENT,
      syscall: 'open',
      hint: 'Is the path right? "reap-trace record" writes the file.',
    },
  )
  terminal.emit({ type: 'warning', error: errorFields(error) })
  terminal.warn(error, 'nothing is prefetched')
}

async function restoreByHandler(
  plan: RestorePlan<'uffd'>,
  { onStaleWorkingSet, ...args }: RestoreArguments,
  started: number,
  terminal: Terminal,
): Promise<void> {
  await ServedSession.run(
    args,
    async ({ onEvent, ...options }) => {
      const restored = await restorePlanned(plan, {
        ...options,
        onStaleWorkingSet,
        timeline: args.trace !== undefined,
        onEvent: (event) => {
          if (event.type !== 'warning' || !plan.diskImages.includes(event.error.path ?? '')) {
            return onEvent(event)
          }
          terminal.emit({ type: 'warning', error: errorFields(event.error) }, event.atMs)
          terminal.warn(event.error, 'the guest reads that image on demand')
        },
      })
      return { handler: restored.handler }
    },
    terminal,
    (session) => serveRestored(session, plan, { ...args, started }, terminal),
  )
}

/** A restore that is served, with the time of its request. */
interface Restored extends Pick<RestoreArguments, 'memory' | 'trace'> {
  readonly started: number
  /** @default {@link judgeRestore} */
  readonly judge?: (record: Parameters<typeof judgeRestore>[0]) => Promise<Verdict | undefined>
}

/**
 * Serves a restored VM until its end, and judges the restore.
 *
 * @throws CliError `ERR_VM_DID_NOT_RUN`
 */
export async function serveRestored(
  session: ServedSession,
  plan: RestorePlan,
  args: Restored,
  terminal: Terminal,
): Promise<Verdict | undefined> {
  const live = terminal.live(() =>
    session.isConnected
      ? `serving · ${progress(session.handler.stats())} · Ctrl-C detaches the VM`
      : 'waiting for a VMM',
  )
  let record: Omit<RestoreRecord, 'version' | 'date'>
  try {
    await session.serveOn()
  } finally {
    live.stop()
    record = await recordOf(session, plan, args)
    if (args.trace !== undefined) await writeTrace(args.trace, record, terminal)
  }
  await checkRestore(session)
  return record.verdict
}

/** The value of a promise; `undefined` if it is pending or has rejected. */
const soFar = <T>(promise: Promise<T>): Promise<T | undefined> =>
  Promise.race([promise.catch(() => undefined), setImmediate(undefined)])

/** Record of the restore so far, also of one that has failed. */
async function recordOf(
  { handler, command, guest }: ServedSession,
  { residency, workingSet, automatic }: RestorePlan,
  args: Restored,
): Promise<Omit<RestoreRecord, 'version' | 'date'>> {
  const prefetch = await soFar(handler.prefetched)
  const end = await soFar(handler.closed)
  const pageCount = residency?.pageCount
  const record = {
    backend: 'uffd',
    snapshot: {
      memoryFile: resolve(args.memory),
      memoryBytes: guest?.memoryBytes ?? (await stat(args.memory)).size,
      pageSize: guest?.pageSize ?? 4096,
    },
    ...(pageCount !== undefined &&
      typeof workingSet === 'string' && {
        workingSet: { path: resolve(workingSet), pageCount },
      }),
    times: {
      started: args.started,
      ...handler.times(),
      commandStarted: command?.startedMs,
      commandEnded: command?.endedMs,
    },
    // Without a set, it resolves with zeros.
    prefetch: pageCount === undefined ? undefined : prefetch,
    stats: handler.stats(),
    statsAtReady: end?.statsAtReady,
    timeline: args.trace === undefined ? undefined : handler.timeline(),
    state: end?.state,
    automatic,
  } as const
  const { judge = judgeRestore } = args
  return { ...record, verdict: await judge(record) }
}

/**
 * Fails a restore whose snapshot could not be loaded after the handshake, or was not resumed, even if
 * COMMAND (curl without --fail) reports success.
 *
 * @throws CliError `ERR_VM_DID_NOT_RUN`
 */
async function checkRestore({ handler }: ServedSession): Promise<void> {
  const { state, stats } = await handler.closed
  if (state !== 'vm-exited' || stats.faults + stats.prefetched > 0) return
  throw new CliError(
    'ERR_VM_DID_NOT_RUN',
    'the VM exited before it touched a page of its memory',
    'Check the response of the VMM to the load (curl needs --fail to report it), and its log.',
  )
}
