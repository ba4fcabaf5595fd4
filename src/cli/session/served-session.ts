import { resolve } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import type {
  FaultHandler,
  FaultStats,
  GuestInfo,
  ServeEvent,
  ServeOptions,
  ServeResult,
  Verdict,
} from '../../index.js'
import type { ServeArguments } from '../arguments/arguments.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError, Interrupted } from '../terminal/failure.js'
import type { Terminal } from '../terminal/terminal.js'
import { formatBytes, formatPlural } from '../terminal/units.js'
import { ChildCommand, type CommandEnd } from './child-command.js'
import { lateStep } from './late-step.js'
import { markReady, ReadyMark } from './ready-mark.js'
import { reportEvent, reportReady } from './serve-events.js'
import type { Served } from './served.js'
import { Signals } from './signals.js'

const INTERPOSED_MS = 10_000
const interposedHint =
  'Its VMM must be dynamically linked, not setuid, and map the memory file privately (share=off).'

/** Fates of a VM by the session's end. */
const fates: Partial<Record<ServeResult['state'], string>> = {
  'vm-killed': 'was killed',
  'vm-left': 'was left without a handler and will freeze at its next fault',
}

/** Event that ended a wait. */
export type Turn =
  | { readonly on: 'command'; readonly end: CommandEnd }
  | { readonly on: 'vm' | 'interrupt' | 'time' }
  | { readonly on: 'terminated'; readonly signal: NodeJS.Signals }

/** Additional events to wait for. */
interface WaitOptions {
  /** Maximum time since the VM's connection. */
  readonly afterMs?: number | undefined
  readonly command?: boolean
}

/** Options for opening the handler of a session. */
export type SessionOptions = Pick<
  ServeOptions,
  | 'socketPath'
  | 'connectTimeoutMs'
  | 'readTimeoutMs'
  | 'onReadTimeout'
  | 'vm'
  | 'peerUid'
  | 'signal'
> & { readonly onEvent: NonNullable<ServeOptions['onEvent']> }

/** A fault handler of the command line, with its COMMAND and signals. */
export class ServedSession {
  readonly handler: FaultHandler
  readonly signals: Signals
  readonly command: ChildCommand | undefined
  readonly #served: Served
  readonly #terminal: Terminal
  readonly #arguments: ServeArguments
  #guest: GuestInfo | undefined
  #ended = false
  #detached = false
  /** The error that ends the session; the fate of its VM is added to its message. */
  #ending: Error | undefined

  /** Serves what `open` returns; ends at once if that is nothing. */
  static async run(
    args: ServeArguments,
    open: (options: SessionOptions) => Promise<Served | undefined>,
    terminal: Terminal,
    body: (session: ServedSession) => Promise<Verdict | undefined>,
  ): Promise<void> {
    const signals = new Signals()
    let session: ServedSession | undefined
    let served: Served | undefined
    let end: ServeEvent | undefined
    // A warning after the prefetch concerns the comparison.
    let isPrefetched = false
    const comparing = new AbortController()
    // `closed` is reported last, even if a file is written after the VM's exit.
    const reportEnd = (verdict?: Verdict) => {
      if (end) reportEvent(end, terminal, isPrefetched, verdict)
      end = undefined
    }
    // A signal aborts the opening of the handler, which may compare a whole set.
    signals.next().then((signal) => {
      if (!served) comparing.abort(new Interrupted(signal, 'nothing was served'))
    })
    const opening = terminal.live(() => 'opening the snapshot')
    let command: ChildCommand | undefined
    const onReady = (atMs: number) => served && markReady(served, atMs)
    const marking = args.command.length > 0 ? ReadyMark.offer(onReady, terminal) : undefined
    try {
      served = await open({
        socketPath: args.socket,
        connectTimeoutMs: args.connectTimeoutMs,
        readTimeoutMs: args.readTimeoutMs,
        onReadTimeout: args.onReadTimeout,
        vm: args.leaveVm ? 'leave' : 'kill',
        ...(args.peerUid !== undefined && { peerUid: args.peerUid }),
        onEvent: (event) => {
          if (event.type === 'closed') end = event
          else if (event.type === 'ready') reportReady(event.atMs, command, terminal)
          else reportEvent(event, terminal, isPrefetched)
          if (event.type === 'prefetched') isPrefetched = event.complete
        },
        signal: comparing.signal,
      })
      opening.stop()
      if (!served) return
      if (args.command.length > 0) {
        command = await ChildCommand.start(args.command, {
          output: args.json ? 'stderr' : 'terminal',
          memBackend: { backend_type: 'Uffd', backend_path: pathForVmm(args.socket) },
          memoryFile: resolve(args.memory),
          interpose: args.interpose,
          mark: await marking,
          timeoutMs: args.commandTimeoutMs,
        })
      }
      session = new ServedSession(served, signals, command, args, terminal)
      reportEnd(await body(session))
      await session.#untilCommandEnds()
      await session.#markEnd()
      await session.#untilCompared()
      await session.#untilLearned()
    } finally {
      opening.stop()
      // Without effect after a regular end.
      const result = await served?.handler.close({ vm: args.leaveVm ? 'leave' : 'kill' })
      if (session && result) session.#addFate(result)
      comparing.abort()
      reportEnd()
      if (session) await session.#dismissCommand()
      await (await marking)?.close()
      signals.dispose()
    }
  }

  private constructor(
    served: Served,
    signals: Signals,
    command: ChildCommand | undefined,
    args: ServeArguments,
    terminal: Terminal,
  ) {
    const { handler } = served
    this.#served = served
    this.handler = handler
    this.signals = signals
    this.command = command
    this.#arguments = args
    this.#terminal = terminal
    handler.connected.then(
      (guest) => {
        this.#guest = guest
      },
      () => {},
    )
    const onEnd = () => {
      this.#ended = true
    }
    handler.closed.then(onEnd, onEnd)
    if (!command) terminal.note(howToLoad(args.socket))
    if (args.interpose) setTimeout(() => this.#remind(), INTERPOSED_MS).unref()
  }

  get guest(): GuestInfo | undefined {
    return this.#guest
  }

  get isConnected(): boolean {
    return this.#guest !== undefined
  }

  /** Waits for the first event; rejects if the session fails. */
  async next({ afterMs, command }: WaitOptions = {}): Promise<Turn> {
    const turns: Promise<Turn>[] = [
      this.handler.closed.then(() => ({ on: 'vm' })),
      this.signals.nextInterrupt().then(() => ({ on: 'interrupt' })),
      this.signals.terminated.then((signal) => ({ on: 'terminated', signal })),
    ]
    if (command && this.command) {
      turns.push(this.command.ended.then((end) => ({ on: 'command', end })))
    }
    if (afterMs !== undefined) {
      const time = this.handler.connected.then(() =>
        sleep<Turn>(afterMs, { on: 'time' }, { ref: false }),
      )
      // The end of an unconnected session is reported by `closed`.
      turns.push(time.catch(() => new Promise<never>(() => {})))
    }
    const turn = await Promise.race(turns)
    if (turn.on === 'interrupt') this.signals.answerInterrupt()
    return turn
  }

  /** Throws if the command failed, or exited before a VM connected. */
  async checkCommand(end: CommandEnd, consequence: string): Promise<void> {
    // Ctrl-C on a terminal ends the command too, as the user wanted.
    if (this.signals.wasInterrupted) return
    // The connected event can arrive after the command has exited.
    if (!this.isConnected) await lateStep(this.handler, 'connected').catch(() => {})
    const failure = this.command?.failure(end)
    if (failure !== undefined) {
      // A VMM that the handler had to kill, in its handshake or later, fails its command; the
      // handler's reason comes first.
      if (this.isConnected || this.#ended || end.signal === 'SIGKILL') {
        await lateStep(this.handler, 'closed')
      }
      throw this.#endWith(
        new CliError(
          'ERR_COMMAND_FAILED',
          `${failure}: ${consequence}`,
          'Run it by itself to see why; it may use REAP_TRACE_SOCKET and REAP_TRACE_MEMORY.',
        ),
      )
    }
    if (this.isConnected) return
    throw new CliError(
      'ERR_HANDSHAKE_TIMEOUT',
      `${this.command?.name} exited before a VM connected to ${this.#arguments.socket}`,
      this.#arguments.interpose
        ? interposedHint
        : 'It should load the snapshot with $REAP_TRACE_SOCKET as its Uffd backend, and wait for the response.',
    )
  }

  /** Throws the end that the user requested. */
  abandon(signal: NodeJS.Signals): never {
    const message = this.isConnected ? `ended by ${signal}` : 'no VM had connected'
    throw this.#endWith(new Interrupted(signal, message))
  }

  /** Serves until the VM exits or is detached. Ctrl-C detaches, a second one ends the session. */
  async serveOn(): Promise<void> {
    let turn = await this.next({ command: true })
    while (turn.on === 'command') {
      await this.checkCommand(turn.end, 'the session ends')
      await this.#markEnd()
      turn = await this.next()
    }
    if (turn.on === 'terminated') this.abandon(turn.signal)
    if (turn.on === 'interrupt') {
      if (!this.isConnected) this.abandon('SIGINT')
      await this.#detach()
    }
  }

  /** Waits for a command that outlives the session; a signal stops it. */
  async #untilCommandEnds(): Promise<void> {
    if (!this.command || this.#detached) return
    const end = await Promise.race([this.command.ended, this.signals.next()])
    if (typeof end === 'string') {
      throw new Interrupted(end, `${this.command.name} is stopped; the session had ended`)
    }
    if (this.signals.wasInterrupted) return
    const failure = this.command.failure(end)
    if (failure) throw new CliError('ERR_COMMAND_FAILED', `${failure}, after the session`)
  }

  /** Lets the end of COMMAND or of the VM be the mark, if there was none. */
  async #markEnd(): Promise<void> {
    const { command } = this
    const { closed = monotonicMs() } = this.handler.times()
    const atMs = command ? command.endedMs : closed
    // A run that has not ended, or has failed, is no run of the application.
    if (atMs === undefined || command?.failure(await command.ended)) return
    this.#served.ready?.(Math.min(atMs, closed))
  }

  /** Waits for the comparison, which makes the next restore faster; a signal stops it. */
  async #untilCompared(): Promise<void> {
    const live = this.#terminal.live(
      () => 'comparing the working set with the memory file · Ctrl-C stops it',
    )
    try {
      const signal = await Promise.race([
        this.handler.compared.then(() => undefined),
        this.signals.nextInterrupt().then(() => undefined),
        this.signals.terminated,
      ])
      if (signal) throw new Interrupted(signal, 'the working set was not compared')
    } finally {
      live.stop()
    }
  }

  /** Waits until the store has saved what this restore taught. A signal ends the process instead. */
  async #untilLearned(): Promise<void> {
    const live = this.#terminal.live(() => 'saving what this restore taught · Ctrl-C stops it')
    try {
      await untilLearned(this.#served.learned?.(), this.signals)
    } finally {
      live.stop()
    }
  }

  async #dismissCommand(): Promise<void> {
    // The detached VM may be the command itself.
    if (this.#detached) this.command?.leave()
    else await this.command?.stop()
  }

  async #detach(): Promise<void> {
    const live = this.#terminal.live(() => `detaching · ${progress(this.handler.stats())}`)
    this.#terminal.note('detaching: the rest of the memory is installed · Ctrl-C kills the VM')
    try {
      const failed = this.handler.detach().then(
        () => new Promise<never>(() => {}),
        // Serving continues: the user decides.
        (error) => this.#terminal.warn(error, 'the VM is served as before'),
      )
      const turn = await Promise.race([this.next(), failed])
      const last = turn ?? (await this.next())
      if (last.on === 'terminated') this.abandon(last.signal)
      if (last.on === 'interrupt') this.abandon('SIGINT')
      this.#detached = (await this.handler.closed).state === 'detached'
    } finally {
      live.stop()
    }
  }

  /** Reminds the user, since a VMM that does not load the library reports nothing. */
  #remind(): void {
    if (this.isConnected || this.#ended) return
    this.#terminal.note(`no VM has connected so far. ${interposedHint}`)
  }

  /** Returns the error, to which {@link #addFate} adds the fate of a VM that lives. */
  #endWith(error: Error): Error {
    if (this.#guest && !this.#ended) this.#ending = error
    return error
  }

  #addFate({ state }: ServeResult): void {
    const fate = fates[state]
    // Its pid is 0 if it is in another pid namespace.
    const vm = this.#guest?.pid ? `the VM (pid ${this.#guest.pid})` : 'the VM'
    if (this.#ending && fate) this.#ending.message += `; ${vm} ${fate}`
  }
}

/**
 * Waits until a store has saved what a restore taught, also for a restore from the page cache.
 *
 * @throws Interrupted at a signal: the process must end, since the store would write on.
 */
export async function untilLearned(
  learned: Promise<unknown> | undefined,
  signals: Signals,
): Promise<void> {
  const signal = await Promise.race([learned?.then(() => undefined), signals.next()])
  if (signal) throw new Interrupted(signal, 'what this restore taught is not saved')
}

/** Counters for a live line. */
export const progress = (stats: FaultStats): string =>
  [
    `${formatPlural(stats.faults, 'fault')}`,
    `${formatPlural(stats.installed + stats.zero, 'page')}`,
    `${formatBytes(stats.bytesRead)} read`,
  ].join(' · ')

/** Elapsed seconds, for a live line. */
export function stopwatch(): () => string {
  const start = performance.now()
  return () => `${((performance.now() - start) / 1000).toFixed(1)} s`
}

/** Absolute path of the socket, or, if it is too long for a socket address, the given one. */
function pathForVmm(socket: string): string {
  const absolute = resolve(socket)
  return Buffer.byteLength(absolute) <= 107 ? absolute : socket
}

function howToLoad(socket: string): string {
  const body = {
    snapshot_path: 'VMSTATE',
    mem_backend: { backend_type: 'Uffd', backend_path: pathForVmm(socket) },
    resume_vm: true,
  }
  return [
    'waiting for a VMM. With Firecracker, load the snapshot now:',
    '  curl --unix-socket FIRECRACKER.SOCKET -X PUT http://localhost/snapshot/load \\',
    `    -H 'Content-Type: application/json' -d '${JSON.stringify(body)}'`,
  ].join('\n')
}
