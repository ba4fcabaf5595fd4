// @ts-check
// One QEMU process: its command line, its monitor (QMP), and the agent's end of the serial port.
//
// The three channels are socket pairs that QEMU inherits, so there is no socket file to clean up
// and no connection to retry, and each end sees when the other one closes.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

const tailBytes = 4096
const qmpFd = 3
const agentFd = 4
const consoleFd = 5
const stateFd = 6

/**
 * The snapshot and each restore must request the same machine.
 *
 * q35 without what a serverless guest has no use for: each device left out is device state not
 * loaded at each restore. (microvm loads some milliseconds faster, and did not always boot.)
 *
 * A disk is read through the host's page cache, and no lock is taken: any number of VMs share it.
 * Without drop-cache=off, QEMU would evict the image at each restore, since it cannot know that
 * nobody
 * has changed it on another host.
 * @param {{ memoryFile: string, memoryBytes: number, shared: boolean, accelerator: string, rootDisk?: string | undefined }} options
 */
export function machineArguments({ memoryFile, memoryBytes, shared, accelerator, rootDisk }) {
  const memory = [
    'memory-backend-file,id=memory',
    `mem-path=${quoted(memoryFile)}`,
    `size=${memoryBytes}`,
    `share=${shared ? 'on' : 'off'}`,
  ].join(',')
  const drive = rootDisk && [
    `file=${quoted(rootDisk)},file.locking=off,file.drop-cache=off`,
    'format=raw,if=none,id=root,readonly=on,cache=writeback',
  ]
  const machine = 'q35,memory-backend=memory,sata=off,smbus=off,hpet=off,smm=off,vmport=off'
  return [
    ...['-nodefaults', '-no-user-config', '-no-reboot', '-S', '-display', 'none'],
    ...['-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max', '-smp', '1'],
    ...['-m', `${memoryBytes / 2 ** 20}M`, '-object', memory, '-machine', machine],
    ...['-rtc', 'clock=vm'],
    ...['-chardev', `socket,id=qmp,fd=${qmpFd}`, '-mon', 'chardev=qmp,mode=control'],
    ...['-chardev', `socket,id=console,fd=${consoleFd}`, '-serial', 'chardev:console'],
    ...['-chardev', `socket,id=agent,fd=${agentFd}`, '-device', 'virtio-serial-pci'],
    ...['-device', 'virtserialport,chardev=agent,nr=1,name=agent'],
    ...(drive ? ['-drive', drive.join(','), '-device', 'virtio-blk-pci,drive=root'] : []),
  ]
}

/** @param {string} path */
function quoted(path) {
  return path.replaceAll(',', ',,')
}

/** The URI of a Machine's `stateFile`, for QMP's migrate-incoming. */
export const stateUri = `fd:${stateFd}`

/** @typedef {{ spawned?: number, qmp?: number, loaded?: number, resumed?: number, answered?: number }} Phases */

/** The last part of a stream's output. */
class Tail {
  text = ''
  /** @param {string} chunk */
  add(chunk) {
    this.text = (this.text + chunk).slice(-tailBytes)
  }
}

export class Machine {
  /** @type {Phases} when each thing had happened, as performance.now() has it */
  phases = {}
  #child
  #waiters = /** @type {Set<Waiter>} */ (new Set())
  #printed = new Tail()
  #console = new Tail()
  /** @type {unknown} */
  #ended
  #closed

  /**
   * @param {object} options
   * @param {string} options.qemu
   * @param {string[]} options.args
   * @param {Record<string, string>} [options.env]  added to this process's; LD_PRELOAD reaches QEMU only
   * @param {number} [options.stateFile]  an open descriptor, `stateUri` for QEMU
   * @param {string} [options.folder]     QEMU's working directory
   * @param {AbortSignal} [options.signal]
   * @param {(chunk: string) => void} [options.onConsole]
   */
  constructor({ qemu, args, env = {}, stateFile, folder, signal, onConsole }) {
    signal?.throwIfAborted()
    // QEMU must not outlive a killed parent: setpriv requests that from the kernel, and the request
    // persists across exec. env(1) follows it, so that a preloaded library is loaded into QEMU
    // only.
    const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
    const command = ['--pdeathsig', 'KILL', 'env', ...variables, qemu, ...args]
    const channels = /** @type {const} */ (['pipe', 'pipe', 'pipe'])
    this.#child = spawn('setpriv', command, {
      cwd: folder,
      stdio: ['ignore', 'pipe', 'pipe', ...channels, stateFile ?? 'ignore'],
    })
    this.phases.spawned = performance.now()
    const child = this.#child
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (chunk) => this.#printed.add(String(chunk)))
    }
    this.#channel(consoleFd)
      .setEncoding('utf8')
      .on('data', (chunk) => {
        this.#console.add(String(chunk))
        onConsole?.(String(chunk))
      })
    for (const [fd, from] of /** @type {const} */ ([
      [qmpFd, 'qmp'],
      [agentFd, 'agent'],
    ])) {
      const lines = createInterface({ input: this.#channel(fd), crlfDelay: Infinity })
      lines.on('line', (line) => this.#receive(from, line))
      lines.on('error', () => {}) // readline also emits the channel's errors
    }
    // QEMU's exit is reported by its exit event, not by EPIPE or ECONNRESET.
    for (const fd of [qmpFd, agentFd, consoleFd]) this.#channel(fd).on('error', () => {})
    const onAbort = () => this.#end(signal?.reason)
    signal?.addEventListener('abort', onAbort, { once: true })
    this.#closed = new Promise((resolve) => {
      child.on('error', (error) => {
        resolve(new Error(`cannot start QEMU: ${error.message}`, { cause: error }))
      })
      child.on('close', (code, by) => {
        resolve(this.#problem(`QEMU ended with ${by ?? `code ${code}`}`))
      })
    }).then((problem) => {
      signal?.removeEventListener('abort', onAbort)
      this.#end(problem)
    })
  }

  get pid() {
    return this.#child.pid
  }

  /** Resolves when QEMU's monitor answers. */
  async connect() {
    await this.#expect('qmp', (message) => 'QMP' in message, 'QEMU to start', 30_000)
    this.phases.qmp = performance.now()
    await this.execute('qmp_capabilities')
    const capabilities = ['x-ignore-shared', 'events'].map((capability) => ({
      capability,
      state: true,
    }))
    await this.execute('migrate-set-capabilities', { capabilities })
  }

  /**
   * @param {string} command
   * @param {object} [args]
   */
  async execute(command, args) {
    this.#channel(qmpFd).write(`${JSON.stringify({ execute: command, arguments: args })}\n`)
    const isReply = (/** @type {Message} */ message) => 'return' in message || 'error' in message
    const reply = await this.#expect('qmp', isReply, `QEMU's reply to ${command}`, 30_000)
    if (reply.error) throw this.#problem(`QEMU refused ${command}: ${reply.error.desc}`)
    return reply.return
  }

  /**
   * Runs `migrate` or `migrate-incoming`, and waits until the state has been transferred.
   * @param {'migrate' | 'migrate-incoming'} command
   * @param {string} uri
   */
  async migrate(command, uri) {
    const isLast = (/** @type {Message} */ message) =>
      message.event === 'MIGRATION' && /^(completed|failed)$/.test(message.data.status)
    const [last] = await Promise.all([
      this.#expect('qmp', isLast, `QEMU's ${command}`, 60_000),
      this.execute(command, { uri }),
    ])
    if (last.data.status !== 'completed') {
      await Promise.race([this.#closed, sleep(1000)]) // it exits soon, after printing the reason
      throw this.#problem(`QEMU's ${command} failed`)
    }
  }

  /**
   * The next line of the agent.
   * @param {string} what
   * @param {number} deadlineMs
   */
  heard(what, deadlineMs) {
    return this.#expect('agent', () => true, what, deadlineMs)
  }

  /** @param {object} message */
  tell(message) {
    this.#channel(agentFd).write(`${JSON.stringify(message)}\n`)
  }

  /** @param {string} text */
  #problem(text) {
    const printed = this.#printed.text.trim()
    const console = this.#console.text.trim()
    return new Error(
      [
        text,
        ...(printed ? [`QEMU printed:\n${printed}`] : []),
        ...(console ? [`The guest's console ends with:\n${console}`] : []),
      ].join('\n'),
    )
  }

  /** Ends QEMU cleanly: its child processes, such as a program it writes to, have exited too. */
  async quit() {
    await this.execute('quit').catch(() => {}) // it may exit before it has replied
    // Its children inherit its stderr, so `close` is emitted only after they have exited.
    const deadline = new AbortController()
    const late = sleep(30_000, 'late', { signal: deadline.signal }).catch(() => {})
    if ((await Promise.race([this.#closed, late])) === 'late') {
      throw this.#problem('waited 30 s for QEMU to quit')
    }
    deadline.abort()
  }

  /** Kills QEMU and waits for its exit. */
  async stop() {
    this.#end(new Error('the guest was stopped'))
    await this.#closed
  }

  /** @param {unknown} reason */
  #end(reason) {
    this.#ended ??= reason
    this.#child.kill('SIGKILL')
    for (const waiter of this.#waiters) waiter.reject(this.#ended)
    this.#waiters.clear()
  }

  /** @param {number} fd */
  #channel(fd) {
    return /** @type {import('node:net').Socket} */ (this.#child.stdio[fd])
  }

  /**
   * @param {'qmp' | 'agent'} from
   * @param {string} line
   */
  #receive(from, line) {
    /** @type {Message} */
    let message
    try {
      message = JSON.parse(line)
    } catch {
      return this.#end(this.#problem(`not JSON from ${from}: ${line.slice(0, 200)}`))
    }
    for (const waiter of this.#waiters) {
      if (waiter.from !== from || !waiter.matches(message)) continue
      this.#waiters.delete(waiter)
      return waiter.resolve(message)
    }
  }

  /**
   * The next message that matches; of two waiters for the same one, the older gets it.
   * @param {'qmp' | 'agent'} from
   * @param {(message: Message) => boolean} matches
   * @param {string} what
   * @param {number} deadlineMs
   * @returns {Promise<Message>}
   */
  #expect(from, matches, what, deadlineMs) {
    if (this.#ended) return Promise.reject(this.#ended)
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#end(this.#problem(`waited ${deadlineMs / 1000} s for ${what}`))
      }, deadlineMs)
      this.#waiters.add({
        from,
        matches,
        resolve: (message) => {
          clearTimeout(timer)
          resolve(message)
        },
        reject: (reason) => {
          clearTimeout(timer)
          reject(reason)
        },
      })
    })
  }
}

/** @typedef {any} Message  a line of JSON from QEMU or from the agent */
/** @typedef {{ from: string, matches: (message: Message) => boolean, resolve: (message: Message) => void, reject: (reason: unknown) => void }} Waiter */
