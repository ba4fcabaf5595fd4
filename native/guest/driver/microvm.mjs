// @ts-check
// Drives Firecracker with the guest of native/guest/microvm. JavaScript, so that bench/ can run it
// directly.
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  unlinkSync,
  writeSync,
} from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { root } from './checkout.mjs'

const fetched = join(root, 'build/firecracker')

export const guestKernel = join(root, 'build/Release/reap-microvm')
/** What is run: of the environment, or what scripts/fetch-firecracker.mjs has fetched. */
export const firecracker = process.env.FIRECRACKER ?? join(fetched, 'firecracker')
export const jailer = process.env.JAILER ?? join(fetched, 'jailer')

const START_TIMEOUT_MS = 40_000
const ANSWER_TIMEOUT_MS = 40_000

/**
 * @typedef {object} BootOptions
 * @property {number} [memoryMib] 128 if left out.
 * @property {number} [vcpus]
 * @property {boolean} [hugePages] On pages of 2 MiB.
 * @property {boolean} [balloon] With the device, empty.
 * @property {boolean} [trackDirtyPages] For `Diff` snapshots of what was written.
 *
 * @typedef {object} JailOptions
 * @property {string} folder For the jails: the base folder.
 * @property {string} id
 * @property {number} uid Its group has the same number.
 * @property {boolean} [newPidNamespace]
 *
 * @typedef {object} Answer
 * @property {number} requests How many the guest has had, this one included, before and after restores.
 * @property {number} [figure] What some answers say more.
 *
 * @typedef {'s' | 'm' | 'l' | 'o' | 'w' | 'c' | 'p' | 'n' | 'b' | 'z'} Request See main.cc of the guest.
 */

/** Why there can be no microVM here, or nothing. */
export function microvmMissing() {
  if (process.arch !== 'x64') return `a guest for ${process.arch}, there is one for x64`
  if (!existsSync(firecracker)) {
    return 'Firecracker: node scripts/fetch-firecracker.mjs, or FIRECRACKER=/path/to/firecracker'
  }
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK)
  } catch (error) {
    return `KVM: ${/** @type {Error} */ (error).message}`
  }
  return undefined
}

/** The answer of Firecracker's API when it refuses a request. */
export class RefusedError extends Error {
  /**
   * @param {string} what
   * @param {number} status
   * @param {string} text
   */
  constructor(what, status, text) {
    super(`${what}: ${status} ${text}`)
    this.status = status
  }
}

/** @type {Set<MicroVm>} */
const alive = new Set()
process.on('exit', () => {
  for (const vm of alive) vm.signal('SIGKILL')
})

/** One Firecracker process, its API and its guest's console. */
export class MicroVm {
  /** Console output so far, including Firecracker's own. */
  output = ''
  /**
   * Folder of its sockets and files in this process's view; a jailed Firecracker sees it as `/`.
   */
  folder
  /** Resolves when it has exited. Never rejects. */
  exited
  #child
  #pid
  #input
  #read = 0
  #ended = false
  #changed = () => {}

  /**
   * Starts the process. Resolves when its API answers.
   *
   * @param {{ binary?: string, jail?: JailOptions }} [options]
   */
  static async start({ binary = firecracker, jail } = {}) {
    const vm = jail ? MicroVm.#inJail(binary, jail) : MicroVm.#plain(binary)
    try {
      await vm.#awaitApi()
      if (jail?.newPidNamespace) {
        // The jailer exits, and reports the pid of the new process outside.
        if (vm.#child.exitCode === null) await once(vm.#child, 'exit')
        vm.#pid = Number(readFileSync(join(vm.folder, `${basename(binary)}.pid`), 'utf8'))
      }
    } catch (error) {
      await vm.kill()
      throw error
    }
    return vm
  }

  /** @param {string} binary */
  static #plain(binary) {
    const folder = mkdtempSync(join(tmpdir(), 'microvm-'))
    const words = ['--api-sock', join(folder, 'api.sock'), '--level', 'Error']
    return new MicroVm(binary, words, folder)
  }

  /**
   * @param {string} binary
   * @param {JailOptions} options
   */
  static #inJail(binary, { folder, id, uid, newPidNamespace }) {
    mkdirSync(folder, { recursive: true })
    const words = ['--id', id, '--exec-file', binary, '--uid', `${uid}`, '--gid', `${uid}`]
    words.push('--chroot-base-dir', folder)
    if (newPidNamespace) words.push('--new-pid-ns')
    words.push('--', '--api-sock', '/api.sock', '--level', 'Error')
    return new MicroVm(jailer, words, join(folder, basename(binary), id, 'root'))
  }

  /**
   * @param {string} command
   * @param {string[]} words
   * @param {string} folder
   */
  constructor(command, words, folder) {
    this.folder = folder
    // Firecracker reads its console from a FIFO or a terminal; Node's pipes are sockets.
    const fifos = mkdtempSync(join(tmpdir(), 'microvm-console-'))
    execFileSync('mkfifo', [join(fifos, 'in')])
    this.#input = openSync(join(fifos, 'in'), 'r+')
    unlinkSync(join(fifos, 'in'))
    rmSync(fifos, { recursive: true })
    this.#child = spawn(command, words, { stdio: [this.#input, 'pipe', 'pipe'] })
    this.#pid = this.#child.pid
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text) => {
        this.output += text
        this.#changed()
      })
    }
    alive.add(this)
    // Its output stays open until it exits, even if the jailer has exited before.
    this.exited = new Promise((resolve) => {
      this.#child.on('error', (error) => {
        this.output += error.message
      })
      this.#child.on('close', (code, signal) => {
        this.#ended = true
        alive.delete(this)
        this.#changed()
        resolve({ code, signal })
      })
    })
  }

  /** Firecracker's pid, even if a jailer has started it. */
  get pid() {
    return /** @type {number} */ (this.#pid)
  }

  /** @param {NodeJS.Signals} name */
  signal(name) {
    if (this.#ended || this.#pid === undefined) return
    try {
      process.kill(this.#pid, name)
    } catch {
      // It has exited already.
    }
  }

  /** Kills it, waits for its exit, and removes its files. */
  async kill() {
    this.signal('SIGKILL')
    await this.exited
    if (this.#input >= 0) closeSync(this.#input)
    this.#input = -1
    rmSync(this.folder, { recursive: true, force: true })
  }

  /**
   * A request on its API. Resolves to the response body, if any.
   *
   * @param {'GET' | 'PUT' | 'PATCH'} method
   * @param {string} path
   * @param {object} [body]
   * @returns {Promise<any>}
   */
  async call(method, path, body) {
    const bytes = body && Buffer.from(JSON.stringify(body))
    const headers = bytes && {
      'Content-Type': 'application/json',
      'Content-Length': bytes.length,
    }
    const socketPath = join(this.folder, 'api.sock')
    // Its server accepts few connections: do not keep them alive.
    const sent = request({ socketPath, method, path, agent: false, ...(headers && { headers }) })
    sent.end(bytes)
    const [response] = await once(sent, 'response')
    let text = ''
    for await (const part of response.setEncoding('utf8')) text += part
    if (response.statusCode >= 300) {
      throw new RefusedError(`${method} ${path}`, response.statusCode, text)
    }
    return text === '' ? undefined : JSON.parse(text)
  }

  /**
   * Boots the guest. Resolves when it waits for its first request.
   *
   * @param {BootOptions} [options]
   */
  async boot({ memoryMib = 128, vcpus = 1, hugePages, balloon, trackDirtyPages } = {}) {
    await this.call('PUT', '/machine-config', {
      vcpu_count: vcpus,
      mem_size_mib: memoryMib,
      ...(hugePages && { huge_pages: '2M' }),
      ...(trackDirtyPages && { track_dirty_pages: true }),
    })
    if (balloon) {
      await this.call('PUT', '/balloon', { amount_mib: 0, deflate_on_oom: false })
    }
    const kernel = { kernel_image_path: guestKernel, boot_args: 'console=ttyS0' }
    await this.call('PUT', '/boot-source', kernel)
    await this.call('PUT', '/actions', { action_type: 'InstanceStart' })
    await this.#line(/^ready$/)
  }

  /**
   * Sends requests without waiting for the answers. Before a load, they wait for the guest.
   *
   * @param {Request} request
   */
  send(request) {
    writeSync(this.#input, request)
  }

  /**
   * The next answer to this request. Rejects when the guest finds its memory wrong.
   *
   * @param {Request} request
   * @returns {Promise<Answer>}
   */
  async answer(request) {
    const [, requests, figure] = await this.#line(
      new RegExp(`^${request} (\\d+) right(?: (\\d+))?$`),
    )
    return { requests: Number(requests), ...(figure !== undefined && { figure: Number(figure) }) }
  }

  /**
   * Sends a request and waits for its answer.
   *
   * @param {Request} request
   */
  ask(request) {
    this.send(request)
    return this.answer(request)
  }

  /** @param {'Paused' | 'Resumed'} state */
  async setState(state) {
    await this.call('PATCH', '/vm', { state })
  }

  /** `Not started`, `Running` or `Paused`. */
  async state() {
    return (await this.call('GET', '/')).state
  }

  /**
   * Pauses the VM and takes a snapshot. The paths are as Firecracker sees them.
   *
   * @param {{ vmstate: string, memoryFile: string, type?: 'Full' | 'Diff' }} options
   */
  async snapshot({ vmstate, memoryFile, type = 'Full' }) {
    await this.setState('Paused')
    const files = { snapshot_path: vmstate, mem_file_path: memoryFile }
    await this.call('PUT', '/snapshot/create', { snapshot_type: type, ...files })
  }

  /**
   * Restores a snapshot, through the handler on that socket or from the memory file. The paths are as
   * Firecracker sees them.
   *
   * @param {object} options
   * @param {string} options.vmstate
   * @param {string} [options.uffdSocket]
   * @param {string} [options.memoryFile]
   * @param {boolean} [options.resume] In the same call. Default: true.
   * @param {boolean} [options.trackDirtyPages]
   */
  async load({ vmstate, uffdSocket, memoryFile, resume = true, trackDirtyPages }) {
    const backend =
      uffdSocket === undefined
        ? { backend_type: 'File', backend_path: memoryFile }
        : { backend_type: 'Uffd', backend_path: uffdSocket }
    await this.call('PUT', '/snapshot/load', {
      snapshot_path: vmstate,
      mem_backend: backend,
      resume_vm: resume,
      // Deprecated since 1.13, and supported by all versions.
      ...(trackDirtyPages && { enable_diff_snapshots: true }),
    })
  }

  async #awaitApi() {
    const deadline = performance.now() + START_TIMEOUT_MS
    for (;;) {
      try {
        await this.call('GET', '/version')
        return
      } catch (error) {
        if (this.#ended) throw new Error(`Firecracker ended at once; it said: ${this.output}`)
        const { code } = /** @type {NodeJS.ErrnoException} */ (error)
        const isStarting = code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'EACCES'
        if (!isStarting || performance.now() > deadline) throw error
        await sleep(2)
      }
    }
  }

  /**
   * The next line of the console that the pattern matches.
   *
   * @param {RegExp} pattern
   * @returns {Promise<RegExpExecArray>}
   */
  async #line(pattern) {
    const deadline = performance.now() + ANSWER_TIMEOUT_MS
    for (;;) {
      for (;;) {
        const end = this.output.indexOf('\n', this.#read)
        if (end < 0) break
        const line = this.output.slice(this.#read, end)
        this.#read = end + 1
        const match = pattern.exec(line)
        if (match) return match
        if (line.includes('WRONG')) throw new Error(`the guest says: ${line}`)
      }
      const left = deadline - performance.now()
      if (this.#ended || left <= 0) {
        const why = this.#ended ? 'Firecracker has ended' : `no line in ${ANSWER_TIMEOUT_MS} ms`
        throw new Error(`${why}, waiting for ${pattern}; so far: ${this.output.slice(-2000)}`)
      }
      let timer
      await new Promise((resolve) => {
        this.#changed = () => resolve(undefined)
        timer = setTimeout(resolve, left)
      })
      clearTimeout(timer)
    }
  }
}
