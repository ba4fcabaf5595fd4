import { type ChildProcess, type StdioOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import { interposerEnvironment, type MemBackend } from '../../index.js'
import { monotonicMs } from '../terminal/clock.js'
import { CliError } from '../terminal/failure.js'
import { formatMs } from '../terminal/units.js'
import type { ReadyMark } from './ready-mark.js'

function stdioFor(output: Output): StdioOptions {
  if (typeof output === 'number') return ['ignore', output, output]
  return ['inherit', output === 'stderr' ? process.stderr : 'inherit', 'inherit']
}

/** Exit of a command. */
export interface CommandEnd {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

const STOP_MS = 2000

/**
 * Environment of the interposer. A VM that cannot be served stops, unless the user chose otherwise.
 */
function interposed(socketPath: string, memoryFile: string): Record<string, string> {
  const whenUnreachable = process.env.REAP_TRACE_WHEN_UNREACHABLE === 'file' ? 'file' : 'stop'
  return interposerEnvironment({
    socketPath,
    snapshot: { memoryFile },
    onUnreachable: whenUnreachable,
  })
}

/** Outputs of COMMAND: the terminal, stdout for JSON alone, or a descriptor for both. */
type Output = 'terminal' | 'stderr' | number

/** The COMMAND after `--`. */
export class ChildCommand {
  readonly name: string
  /** Time of its start, on CLOCK_MONOTONIC. */
  readonly startedMs: number
  /** Never rejects. */
  readonly ended: Promise<CommandEnd>
  /** Time of its end; `undefined` while it runs. */
  endedMs: number | undefined
  readonly #child: ChildProcess
  readonly #leadsGroup: boolean
  /** The limit of its time, if that has expired. */
  #expiredMs: number | undefined

  /**
   * Starts the command. With a descriptor as its output it reads nothing, and stopping it also stops
   * the rest of its process group.
   *
   * @throws CliError `ERR_COMMAND_FAILED` if it cannot be started.
   * @throws ReapTraceError as `interposerEnvironment()` does.
   */
  static async start(
    [name = '', ...args]: readonly string[],
    options: {
      output: Output
      memBackend: MemBackend
      memoryFile: string
      interpose: boolean
      mark: ReadyMark | undefined
      /** 0 for none. */
      timeoutMs: number
    },
  ): Promise<ChildCommand> {
    const { output, memBackend, memoryFile, mark } = options
    const { backend_type: type, backend_path: backendPath } = memBackend
    const startedMs = monotonicMs()
    mark?.startAt(startedMs)
    const child = spawn(name, args, {
      stdio: stdioFor(output),
      detached: typeof output === 'number',
      env: {
        ...process.env,
        REAP_TRACE_BACKEND_TYPE: type,
        REAP_TRACE_BACKEND_PATH: backendPath,
        REAP_TRACE_MEMORY: memoryFile,
        // Not the mark of a program that runs this one.
        REAP_TRACE_READY: mark?.path,
        ...(type === 'Uffd' && { REAP_TRACE_SOCKET: backendPath }),
        ...(type === 'Uffd' && options.interpose && interposed(backendPath, memoryFile)),
      },
    })
    try {
      await once(child, 'spawn')
    } catch (error) {
      throw new CliError(
        'ERR_COMMAND_FAILED',
        `${name} cannot be started: ${(error as Error).message}`,
        'A script needs its executable bit and a path: ./invoke-once.sh',
      )
    }
    return new ChildCommand(name, child, startedMs, options)
  }

  private constructor(
    name: string,
    child: ChildProcess,
    startedMs: number,
    { output, mark, timeoutMs }: { output: Output; mark: ReadyMark | undefined; timeoutMs: number },
  ) {
    this.name = name
    this.startedMs = startedMs
    this.#child = child
    this.#leadsGroup = typeof output === 'number'
    this.ended = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.endedMs = monotonicMs()
        mark?.flush()
        resolve({ code, signal })
      })
    })
    if (timeoutMs === 0) return
    const timer = setTimeout(() => {
      this.#expiredMs = timeoutMs
      void this.stop()
    }, timeoutMs)
    this.ended.finally(() => clearTimeout(timer))
  }

  /** Sends SIGTERM, then SIGKILL after a while, and waits for the exit. */
  async stop(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#kill('SIGTERM')
      const timer = setTimeout(() => this.#kill('SIGKILL'), STOP_MS)
      await this.ended
      clearTimeout(timer)
    }
    if (this.#leadsGroup) this.#kill('SIGKILL')
  }

  #kill(signal: NodeJS.Signals): void {
    if (!this.#leadsGroup) {
      this.#child.kill(signal)
      return
    }
    try {
      process.kill(-this.#child.pid!, signal)
    } catch {
      // No process is left, or none that this user may kill.
    }
  }

  /** Lets this process exit before the command. */
  leave(): void {
    this.#child.unref()
  }

  /** Description of a failed exit; `undefined` on success. */
  failure({ code, signal }: CommandEnd): string | undefined {
    if (this.#expiredMs !== undefined) {
      return `${this.name} had not ended after ${formatMs(this.#expiredMs)} (--command-timeout)`
    }
    if (code === 0) return undefined
    return signal
      ? `${this.name} was ended by ${signal}`
      : `${this.name} exited with status ${code}`
  }
}
