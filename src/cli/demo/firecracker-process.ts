import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, writeSync } from 'node:fs'
import { unlink } from 'node:fs/promises'
import { request } from 'node:http'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { CliError } from '../terminal/failure.js'

const START_TIMEOUT_MS = 10_000
const ANSWER_TIMEOUT_MS = 60_000

/** A Firecracker with the guest of native/guest/microvm, which answers on its serial console. */
export class FirecrackerProcess {
  readonly pid: number
  /** Reported version, such as `1.12.1`. */
  version = ''
  readonly #child: ChildProcess
  readonly #apiPath: string
  readonly #console: number
  readonly #exited: Promise<void>
  #output = ''
  #read = 0
  #ended = false
  #changed: () => void = () => {}

  /** Starts the binary, and resolves when its API, on the socket `apiPath`, responds. */
  static async start(binary: string, apiPath: string): Promise<FirecrackerProcess> {
    // Firecracker reads its console from a FIFO or a terminal; Node's pipes are sockets.
    const fifo = `${apiPath}.in`
    await promisify(execFile)('mkfifo', [fifo])
    const console = openSync(fifo, 'r+')
    await unlink(fifo)
    const args = ['--api-sock', apiPath, '--level', 'Error']
    const child = spawn(binary, args, { stdio: [console, 'pipe', 'pipe'] })
    try {
      await once(child, 'spawn')
    } catch (error) {
      closeSync(console)
      throw new CliError(
        'ERR_DEMO_FAILED',
        `${binary} cannot be started: ${(error as Error).message}`,
        'Name the binary: --firecracker /path/to/firecracker.',
      )
    }
    const vm = new FirecrackerProcess(child, apiPath, console)
    try {
      await vm.#awaitApi()
    } catch (error) {
      await vm.kill()
      throw error
    }
    return vm
  }

  private constructor(child: ChildProcess, apiPath: string, console: number) {
    this.#child = child
    this.#apiPath = apiPath
    this.#console = console
    this.pid = child.pid!
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding('utf8').on('data', (part: string) => {
        this.#output += part
        this.#changed()
      })
    }
    this.#exited = once(child, 'close').then(() => {
      this.#ended = true
      this.#changed()
    })
  }

  /** Sends an API request. */
  async call(method: 'GET' | 'PUT' | 'PATCH', path: string, body?: object): Promise<string> {
    const bytes = body && Buffer.from(JSON.stringify(body))
    const headers = bytes
      ? { 'Content-Type': 'application/json', 'Content-Length': bytes.length }
      : {}
    const sent = request({ socketPath: this.#apiPath, method, path, agent: false, headers })
    sent.end(bytes)
    const [response] = await once(sent, 'response')
    const answer = await text(response)
    if (response.statusCode < 300) return answer
    throw new CliError(
      'ERR_DEMO_FAILED',
      `Firecracker: ${method} ${path}: ${response.statusCode} ${answer}`,
    )
  }

  /** Writes requests to the guest's console, even before the guest runs. */
  send(requests: string): void {
    writeSync(this.#console, requests)
  }

  /** Rest of the next line with this prefix. Rejects if the guest reports wrong memory. */
  async line(start: string): Promise<string> {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS
    for (;;) {
      for (;;) {
        const end = this.#output.indexOf('\n', this.#read)
        if (end < 0) break
        const line = this.#output.slice(this.#read, end)
        this.#read = end + 1
        if (line.includes('WRONG')) {
          throw new CliError('ERR_NOT_IDENTICAL', `the guest found its memory wrong: ${line}`)
        }
        if (line.startsWith(start)) return line.slice(start.length)
      }
      const left = deadline - performance.now()
      if (this.#ended || left <= 0) {
        const why = this.#ended ? 'Firecracker exited' : 'the guest does not answer'
        throw new CliError('ERR_DEMO_FAILED', `${why}${this.#printed()}`)
      }
      const waiting = new AbortController()
      const { signal } = waiting
      const changed = new Promise<void>((resolve) => {
        this.#changed = resolve
      })
      await Promise.race([changed, sleep(left, undefined, { signal }).catch(() => {})])
      waiting.abort()
    }
  }

  /** Kills it without waiting. */
  stop(): void {
    this.#child.kill('SIGKILL')
  }

  async kill(): Promise<void> {
    this.stop()
    await this.#exited
    closeSync(this.#console)
  }

  async #awaitApi(): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS
    for (;;) {
      try {
        const answer = await this.call('GET', '/version')
        this.version = (JSON.parse(answer) as { firecracker_version: string }).firecracker_version
        return
      } catch (error) {
        if (this.#ended) {
          throw new CliError('ERR_DEMO_FAILED', `Firecracker exited at once${this.#printed()}`)
        }
        const { code } = error as NodeJS.ErrnoException
        const isStarting = code === 'ENOENT' || code === 'ECONNREFUSED'
        if (!isStarting || performance.now() > deadline) throw error
        await sleep(2)
      }
    }
  }

  #printed(): string {
    const output = this.#output.trim()
    return output === '' ? '' : `; it printed: ${output.slice(-1000)}`
  }
}
