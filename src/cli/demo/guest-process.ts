import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { programPath } from '../../index.js'
import { CliError } from '../terminal/failure.js'

type Answer = { readonly ok: boolean; readonly error?: string } & Record<string, unknown>

interface Waiting {
  readonly command: string
  readonly resolve: (answer: Answer) => void
  readonly reject: (error: Error) => void
}

/** Builds the snapshot of the embedded guest: a sparse memory file. */
export async function buildSnapshot(
  path: string,
  memoryBytes: number,
  signal: AbortSignal,
): Promise<{ dataPages: number; documents: number }> {
  const args = ['build', '--memory-size', String(memoryBytes), '--snapshot', path]
  const building = promisify(execFile)(programPath('reap-guest'), args, { signal })
  const closed = once(building.child, 'close').catch(() => {})
  try {
    const { stdout } = await building
    return JSON.parse(stdout)
  } catch (error) {
    const { stdout } = error as { stdout?: string }
    if (signal.aborted) {
      await closed
      await rm(`${path}.tmp${building.child.pid}`, { force: true })
    }
    if (signal.aborted || !stdout) throw error
    throw new CliError(
      'ERR_DEMO_FAILED',
      `the snapshot cannot be built: ${JSON.parse(stdout).error}`,
    )
  }
}

/** A VMM with the embedded guest, controlled by commands. It exits with this process. */
export class GuestProcess {
  readonly pid: number
  /** Output on stderr, complete after `kill()`. */
  stderr = ''
  readonly #child: ChildProcess
  readonly #waiting: Waiting[] = []
  readonly #exited: Promise<void>

  static async start(environment: Record<string, string> = {}): Promise<GuestProcess> {
    const path = programPath('reap-guest')
    const env = { ...process.env, ...environment }
    // In a separate process group: this process answers Ctrl-C.
    const child = spawn(path, ['vmm'], { stdio: 'pipe', env, detached: true })
    await once(child, 'spawn').catch((error: Error) => {
      throw new CliError('ERR_NATIVE_UNAVAILABLE', `${path} cannot be started: ${error.message}`)
    })
    const guest = new GuestProcess(child)
    await guest.#expect('start')
    return guest
  }

  private constructor(child: ChildProcess) {
    this.#child = child
    this.pid = child.pid!
    this.#exited = new Promise((resolve) => {
      child.once('close', () => {
        for (const { command, reject } of this.#waiting.splice(0)) {
          reject(new CliError('ERR_DEMO_FAILED', `the embedded guest exited during "${command}"`))
        }
        resolve()
      })
    })
    createInterface({ input: child.stdout! }).on('line', (line) => {
      this.#waiting.shift()?.resolve(JSON.parse(line))
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
    // Write errors are reported as the exit of the process.
    child.stdin!.on('error', () => {})
  }

  /** Runs a command of the fake VMM (native/guest). Rejects when it fails. */
  async send<T>(command: string): Promise<T> {
    this.#child.stdin!.write(`${command}\n`)
    const answer = await this.#expect(command)
    if (answer.ok) return answer as T
    throw new CliError('ERR_DEMO_FAILED', `the embedded guest: ${answer.error}`)
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#exited
  }

  #expect(command: string): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#child.exitCode !== null || this.#child.signalCode !== null) {
        reject(new CliError('ERR_DEMO_FAILED', `the embedded guest exited before "${command}"`))
        return
      }
      this.#waiting.push({ command, resolve, reject })
    })
  }
}
