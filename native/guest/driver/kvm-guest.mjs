// @ts-check
// Drives `reap-guest kvm`, a VM that replays a trace. JavaScript, so that bench/ can run it
// directly.
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, fstatSync, openSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { root } from './checkout.mjs'

const BINARY = join(root, 'build/Release/reap-guest')
const EVENT_TIMEOUT_MS = 40_000

/**
 * @typedef {object} Touch One entry of a trace.
 * @property {number} page
 * @property {boolean} [write] Writes the word's complement, after the comparison.
 * @property {number} [giveBack] Gives this number of pages back instead, from this one on.
 * @property {bigint} [word] Expected word; default: that of the memory file.
 *
 * @typedef {object} KvmEvent One line of the VM.
 * @property {boolean} ok
 * @property {'ready' | 'mapped' | 'connected' | 'running' | 'done' | 'verified'} [event]
 * @property {number} [us] On CLOCK_MONOTONIC, as `process.hrtime` is.
 * @property {number} [pid] Of `ready`.
 * @property {number} [entries] Of `done`: how many the vCPUs replayed, all together.
 * @property {number} [pages] Of `verified`: how many were compared.
 * @property {number} [wrong] Of `done` the entries, of `verified` the pages.
 * @property {string} [error]
 * @property {number} [errno]
 *
 * @typedef {object} KvmOptions
 * @property {string} memoryFile
 * @property {string} trace
 * @property {string} [socketPath] Of a fault handler; without one the memory file is mapped.
 * @property {number} [vcpus]
 * @property {'turns' | 'chunks' | 'all'} [deal] Which entries each vCPU gets.
 * @property {number} [spins] Work after each entry.
 * @property {4096 | 2097152} [pageSize]
 * @property {readonly string[]} [pause] The events after which the VM waits for `go()`.
 * @property {boolean} [verify] Compare whole pages with the memory file at the end.
 * @property {boolean} [threads] Without KVM: threads of a process replay the trace.
 * @property {boolean} [userModeOnly] Use a userfaultfd that does not deliver KVM's faults.
 */

/** Reason why KVM is unusable here, if it is. Throws if KVM runs our guest incorrectly. */
export function kvmMissing() {
  const { stdout, error } = spawnSync(BINARY, ['kvm', '--probe'], { encoding: 'utf8' })
  if (error) return error.message
  /** @type {KvmEvent} */
  const answer = JSON.parse(stdout)
  if (!answer.ok && answer.errno === undefined) throw new Error(answer.error)
  return answer.error
}

/**
 * Offset at which a trace checks a page: it differs between pages, so that the word of another page
 * is no match.
 *
 * @param {number} page
 * @param {number} pageSize
 */
export function wordOffset(page, pageSize) {
  return ((Math.imul(page + 1, 0x9e3779b1) >>> 0) % (pageSize / 8)) * 8
}

/**
 * Writes the trace of these touches, in this order, with the words of the memory file. Its format is
 * in `native/guest/kvm_trace.h`.
 *
 * @param {string} path
 * @param {string} memoryFile
 * @param {Iterable<Touch | number>} touches
 * @param {{ pageSize?: number }} [options]
 */
export function writeKvmTrace(path, memoryFile, touches, { pageSize = 4096 } = {}) {
  const entries = Array.from(touches, (touch) =>
    typeof touch === 'number' ? { page: touch } : touch,
  )
  const bytes = Buffer.alloc(24 + entries.length * 16)
  const memory = openSync(memoryFile, 'r')
  try {
    bytes.write('REAPKVM1', 'latin1')
    bytes.writeBigUInt64LE(BigInt(fstatSync(memory).size), 8)
    bytes.writeBigUInt64LE(BigInt(entries.length), 16)
    for (const [i, { page, write, giveBack, word }] of entries.entries()) {
      const at = 24 + i * 16
      if (giveBack !== undefined) {
        bytes.writeBigUInt64LE(BigInt(page * pageSize + 2), at)
        bytes.writeBigUInt64LE(BigInt(giveBack * pageSize), at + 8)
        continue
      }
      const offset = page * pageSize + wordOffset(page, pageSize)
      bytes.writeBigUInt64LE(BigInt(offset + (write ? 1 : 0)), at)
      if (word === undefined) readSync(memory, bytes, at + 8, 8, offset)
      else bytes.writeBigUInt64LE(word, at + 8)
    }
  } finally {
    closeSync(memory)
  }
  writeFileSync(path, bytes, { mode: 0o600 })
}

/** A VM that replays a trace, in a separate process. */
export class KvmGuest {
  /** @type {import('node:child_process').ChildProcessWithoutNullStreams} */
  #child
  /** @type {KvmEvent[]} */
  #events = []
  /** @type {Set<() => void>} */
  #listeners = new Set()
  #ended = false

  /** @param {KvmOptions} options */
  constructor({ memoryFile, trace, socketPath, pageSize, pause, userModeOnly, ...options }) {
    const args = ['kvm', '--memory', memoryFile, '--trace', trace]
    if (socketPath !== undefined) args.push('--socket', socketPath)
    if (options.vcpus !== undefined) args.push('--vcpus', String(options.vcpus))
    if (options.deal !== undefined) args.push('--deal', options.deal)
    if (options.spins !== undefined) args.push('--spins', String(options.spins))
    if (pageSize !== undefined) args.push('--page-size', String(pageSize))
    if (pause !== undefined) args.push('--pause', pause.join(','))
    if (options.verify) args.push('--verify')
    if (options.threads) args.push('--threads')
    if (userModeOnly) args.push('--user-mode-only')
    const child = spawn(BINARY, args, { stdio: 'pipe' })
    this.#child = child
    child.stdin.on('error', () => {})
    createInterface({ input: child.stdout }).on('line', (line) => {
      this.#events.push(JSON.parse(line))
      this.#changed()
    })
    /**
     * The exit of the process; never rejects.
     * @type {Promise<{ code: number | null, signal: NodeJS.Signals | null }>}
     */
    this.exited = new Promise((resolve) => {
      child.once('close', (code, signal) => {
        this.#ended = true
        this.#changed()
        resolve({ code, signal })
      })
    })
  }

  get pid() {
    return this.#child.pid
  }

  /** Its events so far. */
  get events() {
    return this.#events
  }

  /** The errors that it reported. */
  get error() {
    return this.#events.find(({ ok }) => !ok)
  }

  /**
   * Waits for an event.
   *
   * @param {NonNullable<KvmEvent['event']>} name
   * @returns {Promise<KvmEvent & { us: number }>}
   */
  event(name) {
    return new Promise((resolve, reject) => {
      /** @param {() => void} settle */
      const end = (settle) => {
        clearTimeout(timer)
        this.#listeners.delete(look)
        settle()
      }
      const look = () => {
        const found = this.#events.find(({ event }) => event === name)
        if (found) end(() => resolve(/** @type {KvmEvent & { us: number }} */ (found)))
        else if (this.#ended) end(() => reject(this.#failure(`ended before '${name}'`)))
      }
      const timer = setTimeout(
        () => end(() => reject(this.#failure(`did not say '${name}' in time`))),
        EVENT_TIMEOUT_MS,
      )
      this.#listeners.add(look)
      look()
    })
  }

  /**
   * Resumes it after a pause.
   *
   * @param {string} [line] After `ready`, its backend: `file`, or `socket` and a path.
   */
  go(line = '') {
    this.#child.stdin.write(`${line}\n`)
  }

  /** @param {NodeJS.Signals} [signal] */
  async kill(signal = 'SIGKILL') {
    if (!this.#ended) this.#child.kill(signal)
    return this.exited
  }

  #changed() {
    for (const look of [...this.#listeners]) look()
  }

  /** @param {string} what */
  #failure(what) {
    return new Error(`the KVM guest ${what}; it said: ${JSON.stringify(this.#events)}`)
  }
}
