import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { request } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExitStatus } from './fake-vmm.js'

/** Firecracker's answer when it refuses a request. */
export class FirecrackerError extends Error {
  readonly status: number
  readonly faultMessage: string

  constructor(request: string, status: number, faultMessage: string) {
    super(`${request}: ${status} ${faultMessage}`)
    this.status = status
    this.faultMessage = faultMessage
  }
}

export interface BootOptions {
  readonly kernel: string
  readonly initrd?: string | undefined
  /** A root file system; the guest gets it read-only. */
  readonly rootfs?: string | undefined
  readonly bootArgs?: string | undefined
  readonly memoryMib?: number
  /** `2M` is known from 1.7 on. */
  readonly hugePages?: '2M' | undefined
}

export interface LoadOptions {
  readonly vmstate: string
  /** Where the fault handler listens. */
  readonly uffdSocket: string
  readonly trackDirtyPages?: boolean
  /** Known from 1.12 on. */
  readonly networkOverrides?: readonly { iface_id: string; host_dev_name: string }[] | undefined
  /** Known from 1.16 on. */
  readonly clockRealtime?: boolean | undefined
}

// A kernel without a root file system panics; with panic=0 it stays, and its VM can be snapshotted.
const BOOT_ARGS = 'console=ttyS0 reboot=k panic=0 pci=off'
const START_TIMEOUT_MS = 40_000

/**
 * One Firecracker process and its API socket. Firecracker refuses a request with a field that its
 * version does not know, so only known fields are sent.
 */
export class Firecracker {
  readonly pid: number
  /** Resolves when the process is gone, and never rejects. */
  readonly exited: Promise<ExitStatus>
  /** The version that it reports, such as `1.13.1`. */
  version = ''
  readonly #child: ChildProcess
  readonly #apiPath: string
  #console = ''
  #messages = ''
  #ended = false
  #changed: () => void = () => {}

  /** Starts the binary, and resolves when its API answers. `folder` is for its socket. */
  static async start(
    binary: string,
    folder: string,
    env: Readonly<Record<string, string>> = {},
  ): Promise<Firecracker> {
    const apiPath = join(folder, 'api.sock')
    const child = spawn(binary, ['--api-sock', apiPath], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    })
    await once(child, 'spawn')
    const vm = new Firecracker(child, apiPath)
    try {
      await vm.#awaitApi()
    } catch (error) {
      await vm.kill()
      throw error
    }
    return vm
  }

  private constructor(child: ChildProcess, apiPath: string) {
    this.#child = child
    this.#apiPath = apiPath
    this.pid = child.pid!
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      this.#console += text
      this.#changed()
    })
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#messages += text
    })
    this.exited = once(child, 'exit').then(([code, signal]) => {
      this.#ended = true
      this.#changed()
      return { code, signal }
    })
  }

  /** Output of the guest's serial console, mixed with Firecracker's messages. */
  get console(): string {
    return this.#console
  }

  /** Waits for a match of the pattern on the console. */
  async consoleMatch(pattern: RegExp): Promise<string> {
    for (;;) {
      const match = pattern.exec(this.#console)
      if (match) return match[0]
      if (this.#ended) throw new Error(`Firecracker ended${this.#said()}`)
      await new Promise<void>((resolve) => {
        this.#changed = resolve
      })
    }
  }

  async boot(options: BootOptions): Promise<void> {
    const { kernel, initrd, rootfs, bootArgs = BOOT_ARGS, memoryMib = 128, hugePages } = options
    if (hugePages) this.#since(1, 7, 'huge_pages')
    await this.put('/machine-config', {
      vcpu_count: 1,
      mem_size_mib: memoryMib,
      ...(hugePages && { huge_pages: hugePages }),
    })
    await this.put('/boot-source', {
      kernel_image_path: kernel,
      boot_args: bootArgs,
      ...(initrd && { initrd_path: initrd }),
    })
    if (rootfs) {
      await this.put('/drives/rootfs', {
        drive_id: 'rootfs',
        path_on_host: rootfs,
        is_root_device: true,
        is_read_only: true,
      })
    }
    await this.put('/actions', { action_type: 'InstanceStart' })
  }

  pause(): Promise<void> {
    return this.#change('PATCH', '/vm', { state: 'Paused' })
  }

  resume(): Promise<void> {
    return this.#change('PATCH', '/vm', { state: 'Resumed' })
  }

  /** A full snapshot of the paused VM. */
  snapshot(vmstate: string, memoryFile: string): Promise<void> {
    return this.put('/snapshot/create', {
      snapshot_type: 'Full',
      snapshot_path: vmstate,
      mem_file_path: memoryFile,
    })
  }

  /** Restores a snapshot, which stays paused. A process whose load fails ends. */
  async load(options: LoadOptions): Promise<void> {
    const { vmstate, uffdSocket, trackDirtyPages, networkOverrides, clockRealtime } = options
    this.#since(1, 1, 'mem_backend')
    if (networkOverrides) this.#since(1, 12, 'network_overrides')
    if (clockRealtime !== undefined) this.#since(1, 16, 'clock_realtime')
    const tracking = this.#knows(1, 13) ? 'track_dirty_pages' : 'enable_diff_snapshots'
    await this.put('/snapshot/load', {
      snapshot_path: vmstate,
      mem_backend: { backend_type: 'Uffd', backend_path: uffdSocket },
      resume_vm: false,
      ...(trackDirtyPages !== undefined && { [tracking]: trackDirtyPages }),
      ...(networkOverrides && { network_overrides: networkOverrides }),
      ...(clockRealtime !== undefined && { clock_realtime: clockRealtime }),
    })
  }

  /** `Not started`, `Running` or `Paused`. */
  async state(): Promise<string> {
    return ((await this.#send('GET', '/')) as { state: string }).state
  }

  put(path: string, body: object): Promise<void> {
    return this.#change('PUT', path, body)
  }

  /** Kills the process, and waits for its end. */
  async kill(): Promise<void> {
    if (!this.#ended) this.#child.kill('SIGKILL')
    await this.exited
  }

  async #awaitApi(): Promise<void> {
    const deadline = performance.now() + START_TIMEOUT_MS
    for (;;) {
      try {
        const answer = (await this.#send('GET', '/version')) as { firecracker_version: string }
        this.version = answer.firecracker_version
        return
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException
        const starting = code === 'ENOENT' || code === 'ECONNREFUSED'
        if (this.#ended) throw new Error(`Firecracker ended at once${this.#said()}`)
        if (!starting || performance.now() > deadline) throw error
        await sleep(5)
      }
    }
  }

  #knows(major: number, minor: number): boolean {
    const [, ownMajor, ownMinor] = /^v?(\d+)\.(\d+)/.exec(this.version) ?? []
    if (ownMinor === undefined) throw new Error(`Firecracker has no version in '${this.version}'`)
    return Number(ownMajor) > major || (Number(ownMajor) === major && Number(ownMinor) >= minor)
  }

  #since(major: number, minor: number, field: string): void {
    if (this.#knows(major, minor)) return
    throw new TypeError(`${field} needs Firecracker ${major}.${minor}, this is ${this.version}`)
  }

  async #change(method: 'PUT' | 'PATCH', path: string, body: object): Promise<void> {
    await this.#send(method, path, body)
  }

  #send(method: string, path: string, body?: object): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const bytes = body && Buffer.from(JSON.stringify(body))
      // Its server needs the length of a body, and keeps few connections.
      const headers = bytes && {
        'Content-Type': 'application/json',
        'Content-Length': bytes.length,
      }
      const options = { socketPath: this.#apiPath, method, path, agent: false, headers }
      const sent = request(options as typeof options & { headers: object }, (response) => {
        let text = ''
        response.setEncoding('utf8').on('error', reject)
        response.on('data', (part: string) => {
          text += part
        })
        response.on('end', () => {
          const status = response.statusCode ?? 0
          if (status < 300) return resolve(text === '' ? undefined : JSON.parse(text))
          reject(new FirecrackerError(`${method} ${path}`, status, faultMessage(text)))
        })
      })
      sent.on('error', reject)
      sent.end(bytes)
    })
  }

  #said(): string {
    const said = `${this.#console}${this.#messages}`.trim()
    return said === '' ? '' : `; it said: ${said.slice(-2000)}`
  }
}

function faultMessage(text: string): string {
  try {
    return String((JSON.parse(text) as { fault_message: unknown }).fault_message)
  } catch {
    return text
  }
}
