import { open, readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type FaultHandler,
  type FaultStats,
  type MemBackend,
  planRestore,
  type ReapTraceError,
  restore,
} from '../../index.js'
import type { CompareArguments } from '../arguments/arguments.js'
import { ChildCommand, type CommandEnd } from '../session/child-command.js'
import { lateStep } from '../session/late-step.js'
import { ReadyMark } from '../session/ready-mark.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError } from '../terminal/failure.js'
import type { Arm } from './arms.js'

/** Time after a mark in which COMMAND has to end its VM. */
const END_MS = 10_000
/** Number of bytes at the end of a failed COMMAND's output that are shown. */
const OUTPUT_BYTES = 2000

/** Common settings of the runs of a comparison. */
export interface Scene {
  readonly args: CompareArguments
  readonly scratch: string
  readonly signal: AbortSignal
  readonly onWarning: (error: ReapTraceError) => void
}

/** One restore by COMMAND. */
export interface Sample {
  /** Time from the restore request to the mark or the end of COMMAND. */
  readonly ms: number
  readonly until: 'ready' | 'end'
  readonly backend: 'kernel-file' | 'uffd' | 'page-cache'
  /** Counters of the handler at that time; `undefined` without a handler. */
  readonly stats: FaultStats | undefined
}

/** A failed restore, with the end of the output of its COMMAND. */
export class RunFailure extends Error {
  readonly output: readonly string[]

  constructor(cause: Error, output: string) {
    super(cause.message, { cause })
    this.output = output.slice(-OUTPUT_BYTES).trim().split('\n').filter(Boolean)
  }
}

/** Restore of an arm, before COMMAND starts. */
interface Opened {
  readonly memBackend: MemBackend
  readonly backend: Sample['backend']
  readonly handler: FaultHandler | undefined
  close(): Promise<void>
}

/** Plan of an arm, as `restore` makes it. */
const planOf = ({ args }: Scene, arm: Exclude<Arm, 'kernel-file'>) =>
  planRestore({
    snapshot: { memoryFile: args.memory, diskImages: args.disks, id: args.snapshotId },
    backend: arm === 'on-demand' || arm === 'working-set' ? 'uffd' : arm,
    ...(arm !== 'on-demand' && { workingSet: args.workingSet }),
    trustWorkingSet: args.trustWorkingSet,
    vcpus: args.vcpus,
    onBadWorkingSet: 'fail',
  })

async function openArm(scene: Scene, arm: Arm): Promise<Opened> {
  const { args, scratch, onWarning } = scene
  if (arm === 'kernel-file') {
    const memBackend = { backend_type: 'File', backend_path: resolve(args.memory) } as const
    return { memBackend, backend: 'kernel-file', handler: undefined, close: async () => {} }
  }
  const plan = await planOf(scene, arm)
  const restored = await restore(plan, {
    socketPath: args.socket ?? join(scratch, 'uffd.sock'),
    peerUid: args.peerUid,
    onStaleWorkingSet: 'warn',
    onEvent: (event) => {
      if (event.type === 'warning') onWarning(event.error)
    },
  })
  const { memBackend, backend, handler } = restored
  return { memBackend, backend, handler, close: () => restored.close({ vm: 'kill' }) }
}

/**
 * Restores once and lets COMMAND invoke the guest.
 *
 * @throws RunFailure if the restore failed.
 * @throws the reason of the scene's signal.
 */
export async function runOnce(scene: Scene, arm: Arm, isTrial = false): Promise<Sample> {
  const { args, scratch, signal } = scene
  signal.throwIfAborted()
  const output = await open(join(scratch, 'output'), 'w+')
  let opened: Opened | undefined
  let command: ChildCommand | undefined
  let readyMs: number | undefined
  let stats: FaultStats | undefined
  let onMark = () => {}
  const marked = new Promise<void>((resolve) => {
    onMark = resolve
  })
  const mark = await ReadyMark.open((atMs) => {
    readyMs = atMs
    opened?.handler?.ready(atMs)
    stats = opened?.handler?.stats()
    onMark()
  })
  try {
    const startedMs = monotonicMs()
    opened = await openArm(scene, arm)
    const { memBackend, backend, handler } = opened
    const connection = watchConnection(handler)
    command = await ChildCommand.start(args.command, {
      output: output.fd,
      memBackend,
      memoryFile: resolve(args.memory),
      interpose: args.interpose,
      mark,
      timeoutMs: args.commandTimeoutMs,
    })
    const end = await untilEnd({ command, handler, marked, signal })
    const endMs = monotonicMs()
    stats ??= handler?.stats()
    const failure = end && command.failure(end)
    if (failure !== undefined) {
      // A VMM that the handler had to kill fails COMMAND; the handler's reason comes first.
      if (handler && connection.isMade) await lateStep(handler, 'closed')
      throw new CliError('ERR_COMMAND_FAILED', failure)
    }
    if (handler) await checkVm(handler, connection, command.name)
    if (isTrial && handler) await compared(handler, signal)
    const until = readyMs === undefined ? 'end' : 'ready'
    return { ms: (readyMs ?? endMs) - startedMs, until, backend, stats }
  } catch (error) {
    if (signal.aborted) throw signal.reason
    throw new RunFailure(error as Error, await readFile(join(scratch, 'output'), 'utf8'))
  } finally {
    await command?.stop()
    await opened?.close()
    await Promise.all([mark.close(), output.close()])
  }
}

/** Waits for COMMAND, for a limited time after its mark; `undefined` if that expires. */
async function untilEnd({
  command,
  handler,
  marked,
  signal,
}: {
  command: ChildCommand
  handler: FaultHandler | undefined
  marked: Promise<void>
  signal: AbortSignal
}): Promise<CommandEnd | undefined> {
  const waiting = new AbortController()
  const never = new Promise<never>(() => {})
  let onAbort = () => {}
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason)
  })
  signal.addEventListener('abort', onAbort)
  const late = marked.then(() => sleep(END_MS, undefined, { signal: waiting.signal }))
  late.catch(() => {})
  // COMMAND may outlive its VM, but a failure of the handler fails the run.
  const failed = handler?.closed.then(
    () => never,
    (error) => Promise.reject(error),
  )
  try {
    return await Promise.race([command.ended, aborted, late, failed ?? never])
  } finally {
    waiting.abort()
    signal.removeEventListener('abort', onAbort)
  }
}

interface Connection {
  isMade: boolean
}

function watchConnection(handler: FaultHandler | undefined): Connection {
  const connection = { isMade: false }
  handler?.connected.then(
    () => {
      connection.isMade = true
    },
    () => {},
  )
  return connection
}

/** Throws if the VM of COMMAND used another backend, or did not run. */
async function checkVm(handler: FaultHandler, connection: Connection, name: string): Promise<void> {
  if (!connection.isMade) await lateStep(handler, 'connected').catch(() => {})
  if (!connection.isMade) {
    throw new CliError(
      'ERR_HANDSHAKE_TIMEOUT',
      `${name} ended before a VM connected`,
      'It must load the snapshot with the backend in REAP_TRACE_BACKEND_TYPE and …_PATH.',
    )
  }
  const { faults, prefetched } = handler.stats()
  if (faults + prefetched > 0) return
  throw new CliError('ERR_VM_DID_NOT_RUN', 'the VM touched no page of its memory')
}

/** Waits for the proof of a working set, so that all measured runs have it. */
const compared = ({ compared }: FaultHandler, signal: AbortSignal): Promise<unknown> =>
  Promise.race([
    compared.catch(() => {}),
    new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true })),
  ])
