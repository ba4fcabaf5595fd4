import { execFile } from 'node:child_process'
import { constants, openSync, readSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { monotonicMs } from '../terminal/clock.js'
import type { Terminal } from '../terminal/terminal.js'
import type { Served } from './served.js'

/** Number of bytes read at once, and maximum length of a line with a time. */
const MAX_LINE = 4096

/**
 * FIFO for the ready mark of a COMMAND. A line is the mark; its time is that of its receipt, or
 * `atMs` in the JSON of `reap-trace ready`.
 */
export class ReadyMark {
  readonly path: string
  readonly #folder: string
  readonly #fd: number
  readonly #socket: Socket
  #earliestMs = monotonicMs()
  #onReady: ((atMs: number) => void) | undefined
  #line = ''

  /** `onReady` is called once, with a time on CLOCK_MONOTONIC. */
  static async open(onReady: (atMs: number) => void): Promise<ReadyMark> {
    const folder = await mkdtemp(join(tmpdir(), 'reap-trace-ready-'))
    try {
      const path = join(folder, 'ready')
      await promisify(execFile)('mkfifo', ['-m', '600', path])
      // Open for writing too: a writer never waits, and its close is no end of the file.
      const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
      return new ReadyMark(folder, path, fd, onReady)
    } catch (error) {
      await rm(folder, { recursive: true, force: true })
      throw error
    }
  }

  /** Like `open`, but a failure is only reported: a restore does not depend on its mark. */
  static offer(
    onReady: (atMs: number) => void,
    terminal: Terminal,
  ): Promise<ReadyMark | undefined> {
    return ReadyMark.open(onReady).catch((error: Error) => {
      terminal.say(`REAP_TRACE_READY is not set: ${error.message}`)
      return undefined
    })
  }

  private constructor(folder: string, path: string, fd: number, onReady: (atMs: number) => void) {
    this.path = path
    this.#folder = folder
    this.#fd = fd
    this.#onReady = onReady
    // Not fs.read(), which would block a thread of libuv's pool.
    this.#socket = new Socket({ fd, readable: true, writable: false })
    this.#socket.unref()
    this.#socket.setEncoding('utf8').on('data', (text: string) => this.#take(text))
    this.#socket.on('error', () => {})
  }

  /** Tells when the COMMAND starts: an earlier time is not believed. */
  startAt(ms: number): void {
    this.#earliestMs = ms
  }

  /** Reads the lines written so far, such as the last one of a COMMAND that has ended. */
  flush(): void {
    const buffer = Buffer.alloc(MAX_LINE)
    try {
      while (this.#onReady) this.#take(buffer.toString('utf8', 0, readSync(this.#fd, buffer)))
    } catch {
      // Nothing (EAGAIN).
    }
  }

  /** Removes the FIFO. */
  async close(): Promise<void> {
    this.#onReady = undefined
    this.#socket.destroy()
    await rm(this.#folder, { recursive: true, force: true })
  }

  #take(text: string): void {
    const nowMs = monotonicMs()
    const [rest = '', ...more] = text.split('\n')
    if (this.#line.length < MAX_LINE) this.#line += rest
    if (more.length === 0 || !this.#onReady) return
    const onReady = this.#onReady
    this.#onReady = undefined
    const atMs = writtenTime(this.#line)
    const isPossible = atMs !== undefined && atMs >= this.#earliestMs && atMs <= nowMs
    onReady(isPossible ? atMs : nowMs)
  }
}

/**
 * Marks a session as ready. The line of a COMMAND that then ended its VM may be read only after this
 * end; it counts as of the end.
 */
export function markReady({ handler, ready }: Served, atMs: number): void {
  const readyMs = Math.min(atMs, handler.times().closed ?? atMs)
  if (ready) ready(readyMs)
  else handler.ready(readyMs)
}

/** Line of `reap-trace ready`. */
export const readyLine = (atMs: number): string => `${JSON.stringify({ atMs })}\n`

function writtenTime(line: string): number | undefined {
  try {
    const { atMs } = JSON.parse(line)
    return typeof atMs === 'number' ? atMs : undefined
  } catch {
    return undefined
  }
}
