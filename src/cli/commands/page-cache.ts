// record and restore for VMMs that map the memory file, without a handler.
import { stat } from 'node:fs/promises'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  judgeRestore,
  type PageCachePrefetchResult,
  type PageCacheRecord,
  type PageCacheRestore,
  type RestorePlan,
  type RestoreRecord,
  type RestoreTimes,
  recordPageCache,
  type ServeEvent,
  type Snapshot,
  type Verdict,
  WorkingSet,
} from '../../index.js'
import type { RecordArguments, RestoreArguments, ServeArguments } from '../arguments/arguments.js'
import { ChildCommand } from '../session/child-command.js'
import { ReadyMark } from '../session/ready-mark.js'
import { reportReady, reportVerdict } from '../session/serve-events.js'
import type { Lesson } from '../session/served.js'
import { stopwatch, untilLearned } from '../session/served-session.js'
import { Signals } from '../session/signals.js'
import { stepTable } from '../session/step-table.js'
import { writeTrace } from '../session/write-trace.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError, errorFields, Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatCount, formatMs, formatPlural } from '../terminal/units.js'
import { checkRecording } from './check-recording.js'
import { describeSize, writeSet } from './write-set.js'

const startCommand = async (
  args: ServeArguments,
  mark: ReadyMark | undefined,
): Promise<ChildCommand | undefined> => {
  const memoryFile = resolve(args.memory)
  if (args.command.length === 0) return undefined
  return ChildCommand.start(args.command, {
    output: args.json ? 'stderr' : 'terminal',
    memBackend: { backend_type: 'File', backend_path: memoryFile },
    memoryFile,
    interpose: false,
    mark,
    timeoutMs: args.commandTimeoutMs,
  })
}

/** Event that ended a recording. */
type End = 'command' | 'time' | NodeJS.Signals

async function firstOf(
  signals: Signals,
  command: ChildCommand | undefined,
  forMs: number | undefined,
): Promise<End> {
  const ends: Promise<End>[] = [signals.next()]
  if (command) ends.push(command.ended.then(() => 'command'))
  if (forMs !== undefined) ends.push(sleep(forMs, 'time' as const, { ref: false }))
  // Neither signals nor a recording keep the event loop alive.
  const keep = setInterval(() => {}, 2 ** 30)
  try {
    return await Promise.race(ends)
  } finally {
    clearInterval(keep)
    // This Ctrl-C ended the recording or the command; the next one aborts the writing.
    if (signals.wasInterrupted) signals.answerInterrupt()
  }
}

async function checkCommand(
  command: ChildCommand | undefined,
  signals: Signals,
  consequence: string,
): Promise<void> {
  if (!command || signals.wasInterrupted) return
  const failure = command.failure(await command.ended)
  if (failure === undefined) return
  throw new CliError(
    'ERR_COMMAND_FAILED',
    `${failure}: ${consequence}`,
    'Run it by itself to see why; it may use REAP_TRACE_BACKEND_TYPE and REAP_TRACE_BACKEND_PATH.',
  )
}

export async function recordByPageCache(args: RecordArguments, terminal: Terminal): Promise<void> {
  const { memory, disks, output, label, snapshotId, forMs } = args
  const signals = new Signals()
  let command: ChildCommand | undefined
  const onReady = (atMs: number) => reportReady(atMs, command!, terminal)
  const marking = args.command.length > 0 ? ReadyMark.offer(onReady, terminal) : undefined
  try {
    const snapshot = { memoryFile: memory, diskImages: disks, id: snapshotId }
    const recording = await recordPageCache({
      snapshot,
      onEvent: ({ error, atMs }) => {
        terminal.emit({ type: 'warning', error: errorFields(error) }, atMs)
        terminal.warn(error, 'the record includes read-ahead')
      },
    })
    const time = stopwatch()
    const files = formatPlural(1 + disks.length, 'file')
    terminal.emit({ type: 'recording', memoryFile: memory, diskImages: disks })
    terminal.print(`recording: ${files} evicted from the page cache`)
    if (!args.command.length && forMs === undefined) terminal.note('Ctrl-C ends the recording')
    const live = terminal.live(() => `recording · ${time()}`)
    let record: PageCacheRecord
    try {
      command = await startCommand(args, await marking)
      const end = await firstOf(signals, command, forMs)
      if (end === 'command') {
        await checkCommand(command, signals, 'the recording is not written')
      } else if (end !== 'SIGINT' && end !== 'time') {
        throw new Interrupted(end, `ended by ${end}: the recording is not written`)
      }
    } finally {
      live.stop()
      record = await recording.stop()
    }
    await write(record, { snapshot, output, label }, signals, terminal)
  } finally {
    await command?.stop()
    await (await marking)?.close()
    signals.dispose()
  }
}

async function write(
  { trace, disks, mapper, trimmedPageCount }: PageCacheRecord,
  { snapshot, output, label }: { snapshot: Snapshot } & Pick<RecordArguments, 'output' | 'label'>,
  signals: Signals,
  terminal: Terminal,
): Promise<void> {
  if (trace.pages.length === 0) {
    throw new CliError(
      'ERR_NOTHING_RECORDED',
      `no page of ${snapshot.memoryFile} entered the page cache: ${output} is not written`,
      'Does the VMM map this file (Firecracker: a File backend), and did the guest run?',
    )
  }
  // Without a mapper, the trace includes read-ahead, whatever the guest did.
  if (mapper) checkRecording(trace, `${output} is not written`)
  const set = WorkingSet.fromTraces([trace], { disks: disks.map((disk) => [disk]) })
  await writeSet(set, output, { snapshot, label }, signals, terminal)
  const { pageCount, bytes } = set
  const diskPageCount = set.disks.reduce((sum, disk) => sum + disk.pageCount, 0)
  const extentCount = set.extents.length
  terminal.emit({
    type: 'recorded',
    path: output,
    pageCount,
    extentCount,
    bytes,
    diskPageCount,
    trimmedPageCount,
    mapper: mapper?.pid ?? null,
  })
  const images =
    diskPageCount > 0 ? ` and ${formatPlural(diskPageCount, 'page')} of disk images` : ''
  terminal.print(`recorded ${describeSize(set)}${images} in ${output}`)
  terminal.print(
    mapper
      ? `pid ${mapper.pid} mapped the memory: ${formatPlural(trimmedPageCount, 'page')} of read-ahead omitted`
      : 'no readable page table of a process that mapped the memory: the record includes read-ahead',
  )
}

/** Listener for a restore from the page cache. */
export const warnOfPrefetch =
  (terminal: Terminal) =>
  (event: ServeEvent): void => {
    if (event.type !== 'warning') return
    terminal.emit({ type: 'warning', error: errorFields(event.error) }, event.atMs)
    terminal.warn(event.error, 'the guest reads missing pages on demand')
  }

/** Loads the snapshot by COMMAND during the prefetch. `started` is the time of the request. */
export async function restoreFromPageCache(
  opened: PageCacheRestore & Lesson,
  args: ServeArguments & Pick<RestoreArguments, 'trace'>,
  started: number,
  terminal: Terminal,
): Promise<void> {
  const signals = new Signals()
  let command: ChildCommand | undefined
  let ready: number | undefined
  let prefetch: PageCachePrefetchResult | undefined
  let prefetched: number | undefined
  /** End of a restore that has not failed. */
  let closed: number | undefined
  const onReady = (atMs: number) => {
    ready = atMs
    opened.ready?.(atMs)
    reportReady(atMs, command!, terminal)
  }
  const marking = args.command.length > 0 ? ReadyMark.offer(onReady, terminal) : undefined
  try {
    await using restored = opened
    const backend = restored.memBackend
    terminal.emit({ type: 'restoring', memBackend: backend })
    if (args.command.length === 0)
      terminal.note(`load the snapshot now: "mem_backend": ${JSON.stringify(backend)}`)
    command = await startCommand(args, await marking)
    const prefetching = restored.prefetched.then((result) => {
      const { pageCount, residentPageCount, bytes, extentCount, completedMs } = result
      const { startedAtMs } = result
      prefetch = result
      prefetched = startedAtMs === undefined ? monotonicMs() : startedAtMs + completedMs
      terminal.emit({ type: 'prefetched', ...result }, prefetched)
      if (pageCount === 0) return
      const pages = formatPlural(pageCount, 'page')
      terminal.print(
        residentPageCount === pageCount
          ? `nothing to prefetch: ${pages} of the working set are in the page cache`
          : `prefetched ${formatBytes(bytes)} in ${formatPlural(extentCount, 'extent')} in ${formatMs(completedMs)}; ${formatCount(residentPageCount)} of ${pages} were already cached`,
      )
    })
    const done = Promise.all([prefetching, command?.ended]).then(() => undefined)
    const signal = await Promise.race([done, signals.next()])
    if (signal) throw new Interrupted(signal, `ended by ${signal}`)
    await checkCommand(command, signals, 'the restore failed')
    closed = monotonicMs()
    if (command) opened.ready?.(command.endedMs ?? closed)
    await untilLearned(opened.learned?.(), signals)
  } finally {
    await command?.stop()
    await (await marking)?.close()
    signals.dispose()
    const times: RestoreTimes = {
      started,
      firstFetch: prefetch?.startedAtMs,
      prefetched,
      commandStarted: command?.startedMs,
      ready,
      commandEnded: command?.endedMs,
      closed: closed ?? monotonicMs(),
    }
    const record = await recordOf(times, prefetch, opened.plan, args)
    const verdict = closed === undefined ? undefined : judgeRestore(record)
    reportTimes(times, verdict, terminal)
    if (args.trace !== undefined) await writeTrace(args.trace, { ...record, verdict }, terminal)
  }
}

function reportTimes(times: RestoreTimes, verdict: Verdict | undefined, terminal: Terminal): void {
  terminal.emit({ type: 'closed', times, verdict }, times.closed)
  // Without COMMAND, the prefetch is the only step.
  if (times.commandStarted === undefined) return
  const steps = [
    ['first read', times.firstFetch],
    ['COMMAND started', times.commandStarted],
    ['prefetched', times.prefetched],
    ['ready', times.ready],
    ['COMMAND ended', times.commandEnded],
  ] as const
  for (const line of stepTable(steps, times.started)) terminal.print(line)
  if (verdict) reportVerdict(verdict, terminal)
}

async function recordOf(
  times: RestoreTimes,
  prefetch: PageCachePrefetchResult | undefined,
  { workingSet, automatic }: RestorePlan,
  { memory }: ServeArguments,
): Promise<Omit<RestoreRecord, 'version' | 'date'>> {
  return {
    backend: 'page-cache',
    snapshot: {
      memoryFile: resolve(memory),
      memoryBytes: (await stat(memory)).size,
      pageSize: 4096,
    },
    ...(prefetch?.pageCount &&
      typeof workingSet === 'string' && {
        workingSet: { path: resolve(workingSet), pageCount: prefetch.pageCount },
      }),
    times,
    prefetch,
    automatic,
  }
}
