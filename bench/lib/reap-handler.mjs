import { execFile, spawn } from 'node:child_process'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import { root } from './machine.mjs'

const program = join(root, 'build/Release/reap-bench')

/** Writes REAP's working-set file: the pages of the list from the memory file, by address. */
export const packReapPages = ({ memoryFile, pageList, output }) =>
  promisify(execFile)(program, [
    'reap-pack',
    '--memory',
    memoryFile,
    '--pages',
    pageList,
    '--output',
    output,
  ])

// Both clocks are CLOCK_MONOTONIC.
const offsetMs = performance.now() - Number(process.hrtime.bigint()) / 1e6
export const onOurClock = ({ us }) => us / 1000 + offsetMs

/** A handler of bench/native, in a separate process. */
class NativeHandler {
  #child
  #events = new Map()
  #waiting = new Map()
  #ended
  #over = false

  /**
   * Resolves when it listens.
   *
   * @param {string[]} words
   * @param {AbortSignal} [signal]
   */
  static async launch(words, signal) {
    const stdio = ['pipe', 'pipe', 'inherit']
    const handler = new this(spawn(program, words, { stdio, signal }))
    await handler.event('listening')
    return handler
  }

  constructor(child) {
    this.#child = child
    // Writing to an exited handler is harmless.
    child.stdin.on('error', () => {})
    this.#ended = new Promise((resolve) => {
      child.once('error', resolve)
      child.once('close', resolve)
    }).then(() => {
      this.#over = true
      for (const { reject, name } of this.#waiting.values()) {
        reject(new Error(`the handler ended before "${name}"`))
      }
    })
    createInterface({ input: child.stdout }).on('line', (line) => {
      const event = JSON.parse(line)
      this.#events.set(event.event, event)
      this.#waiting.get(event.event)?.resolve(event)
      this.#waiting.delete(event.event)
    })
  }

  event(name) {
    const there = this.#events.get(name)
    if (there) return Promise.resolve(there)
    if (this.#over) return Promise.reject(new Error(`the handler ended before "${name}"`))
    return new Promise((resolve, reject) => this.#waiting.set(name, { resolve, reject, name }))
  }

  get pid() {
    return this.#child.pid
  }

  sendInput() {
    this.#child.stdin.write('\n')
  }

  terminate() {
    this.#child.kill('SIGTERM')
  }

  /** Time at which its process listened. */
  get listeningAt() {
    return onOurClock(this.#events.get('listening'))
  }

  async stop() {
    if (this.#child.exitCode === null && this.#child.signalCode === null)
      this.#child.kill('SIGKILL')
    await this.#ended
  }
}

/** REAP's algorithm as published. */
export class ReapHandler extends NativeHandler {
  /**
   * @param {object} options
   * @param {string} options.socketPath
   * @param {string} options.memoryFile
   * @param {string} options.pageList
   * @param {string} options.pages what packReapPages() wrote
   * @param {'direct' | 'cached'} options.fetch past the page cache, as published, or through it
   * @param {boolean} [options.held] until begin(); else it reads the pages as soon as it listens
   * @param {AbortSignal} [options.signal]
   * @returns {Promise<ReapHandler>}
   */
  static start({ socketPath, memoryFile, pageList, pages, fetch, held = false, signal }) {
    const words = ['reap', '--socket', socketPath, '--memory', memoryFile, '--fetch', fetch]
    words.push('--pages', pageList, '--ws', pages, '--begin', held ? 'on-input' : 'at-once')
    return ReapHandler.launch(words, signal)
  }

  begin() {
    this.sendInput()
  }

  /** Resolves when the working set is in memory, so that the VMM may be started. */
  get fetched() {
    return this.event('fetched')
  }

  /** Ends the handler, and returns its counts. */
  async end() {
    this.terminate()
    const [fetched, connected, installed, ended] = await Promise.all(
      ['fetched', 'connected', 'installed', 'ended'].map((name) => this.event(name)),
    )
    return {
      fetchedAt: onOurClock(fetched),
      installedAt: onOurClock(installed),
      installMs: (installed.us - connected.us) / 1000,
      faults: ended.faults,
    }
  }
}

/** The minimal handler: the memory file mapped, one thread, one page per fault. */
export class PlainHandler extends NativeHandler {
  /**
   * @param {{ socketPath: string, memoryFile: string, signal?: AbortSignal }} options
   * @returns {Promise<PlainHandler>}
   */
  static start({ socketPath, memoryFile, signal }) {
    const words = ['on-demand', '--socket', socketPath, '--memory', memoryFile]
    return PlainHandler.launch(words, signal)
  }

  /** Ends the handler, and returns its counts. */
  async end() {
    this.terminate()
    const { faults } = await this.event('ended')
    return { faults }
  }
}
