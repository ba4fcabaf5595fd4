import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { interposerEnvironment, type MemBackend } from '../../index.js'
import { CliError } from '../terminal/failure.js'

/** How a command ended that was started beside a session. */
export interface CommandEnd {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

const STOP_MS = 2000

/** Somebody waits for this VM, so it stops when it cannot be served, unless the user says else. */
function interposed(socketPath: string, memoryFile: string): Record<string, string> {
  const whenUnreachable = process.env.REAP_TRACE_WHEN_UNREACHABLE === 'file' ? 'file' : 'stop'
  return interposerEnvironment({
    socketPath,
    snapshot: { memoryFile },
    onUnreachable: whenUnreachable,
  })
}

/** The COMMAND after `--`. */
export class ChildCommand {
  readonly name: string
  /** Never rejects. */
  readonly ended: Promise<CommandEnd>
  readonly #child: ChildProcess

  /**
   * With `json`, its stdout goes to our stderr.
   *
   * @throws CliError `ERR_COMMAND_FAILED` when it cannot be started.
   * @throws ReapTraceError what `interposerEnvironment()` throws.
   */
  static async start(
    [name = '', ...words]: readonly string[],
    options: { json: boolean; memBackend: MemBackend; memoryFile: string; interpose: boolean },
  ): Promise<ChildCommand> {
    const { memBackend, memoryFile } = options
    const { backend_type: type, backend_path: backendPath } = memBackend
    const child = spawn(name, words, {
      stdio: ['inherit', options.json ? process.stderr : 'inherit', 'inherit'],
      env: {
        ...process.env,
        REAP_TRACE_BACKEND_TYPE: type,
        REAP_TRACE_BACKEND_PATH: backendPath,
        REAP_TRACE_MEMORY: memoryFile,
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
    return new ChildCommand(name, child)
  }

  private constructor(name: string, child: ChildProcess) {
    this.name = name
    this.#child = child
    this.ended = new Promise((resolve) => {
      child.once('exit', (code, signal) => resolve({ code, signal }))
    })
  }

  /** Asks it to end, insists after a while, and waits for it. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return
    this.#child.kill('SIGTERM')
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS)
    await this.ended
    clearTimeout(timer)
  }

  /** Lets it live on without us. */
  leave(): void {
    this.#child.unref()
  }

  /** What a failed end says; `undefined` for a good one. */
  failure({ code, signal }: CommandEnd): string | undefined {
    if (code === 0) return undefined
    return signal
      ? `${this.name} was ended by ${signal}`
      : `${this.name} exited with status ${code}`
  }
}
