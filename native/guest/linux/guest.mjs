// @ts-check
// A snapshot on disk, and the VMs that are restored from it.
import { closeSync, openSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { Machine, machineArguments, stateUri } from './qemu.mjs'

const invokeDeadlineMs = 60_000

export class Guest {
  #qemu
  #accelerator

  /**
   * @param {object} options
   * @param {string} options.name
   * @param {string} options.folder
   * @param {number} options.memoryBytes
   * @param {import('./functions.mjs').Input[]} options.inputs  the first is the one to record
   * @param {string} options.qemu
   * @param {string} options.accelerator
   * @param {boolean} [options.onDisk]
   */
  constructor({ name, folder, memoryBytes, inputs, qemu, accelerator, onDisk = false }) {
    this.name = name
    this.memoryFile = join(folder, 'memory')
    this.stateFile = join(folder, 'state')
    /** Its root, unless that is in its memory. */
    this.diskImages = onDisk ? [join(folder, 'disk')] : []
    this.memoryBytes = memoryBytes
    this.inputs = inputs
    this.#qemu = qemu
    this.#accelerator = accelerator
  }

  /**
   * A VM that has its device state and is ready to resume. Its memory is a private mapping of the
   * memory file, which no VM changes; any number may run at once.
   * @param {object} [options]
   * @param {Record<string, string>} [options.env]  added to QEMU's environment, such as LD_PRELOAD
   * @param {AbortSignal} [options.signal]  kills the VM
   * @returns {Promise<GuestVm>}
   */
  restore({ env, signal } = {}) {
    return this.#restore({ memoryFile: this.memoryFile, shared: false, env, signal })
  }

  /**
   * A snapshot of a VM that was restored from this one and used: its child. The child's memory is a
   * copy of this one's, on which the VM ran. Not for a guest on a disk.
   * @param {string} folder  an empty one, for the child's files
   * @param {(vm: GuestVm) => Promise<unknown>} use
   * @param {AbortSignal} [signal]
   */
  async snapshotAfter(folder, use, signal) {
    const { name, memoryBytes, inputs } = this
    const [qemu, accelerator] = [this.#qemu, this.#accelerator]
    const child = new Guest({ name, folder, memoryBytes, inputs, qemu, accelerator })
    const { memoryFile } = child
    await copyFile(this.memoryFile, memoryFile)
    const vm = await this.#restore({ memoryFile, shared: true, folder, signal })
    try {
      await vm.resume()
      await use(vm)
      await vm.save()
    } finally {
      await vm.stop()
    }
    return child
  }

  /**
   * @param {{ memoryFile: string, shared: boolean, folder?: string, env?: Record<string, string> | undefined, signal?: AbortSignal | undefined }} options
   */
  async #restore({ memoryFile, shared, folder, env, signal }) {
    const stateFile = openSync(this.stateFile, 'r')
    /** @type {Machine} */
    let machine
    try {
      const { memoryBytes } = this
      const accelerator = this.#accelerator
      const [rootDisk] = this.diskImages
      machine = new Machine({
        qemu: this.#qemu,
        args: [
          ...machineArguments({ memoryFile, memoryBytes, shared, accelerator, rootDisk }),
          ...['-incoming', 'defer'],
        ],
        ...(env && { env }),
        ...(signal && { signal }),
        ...(folder && { folder }),
        stateFile,
      })
    } finally {
      closeSync(stateFile)
    }
    try {
      await machine.connect()
      await machine.migrate('migrate-incoming', stateUri)
      machine.phases.loaded = performance.now()
      return new GuestVm(this.name, machine)
    } catch (error) {
      await machine.stop()
      throw error
    }
  }

  /** Restores the guest for each input, and throws if its answer differs from the host's. */
  async check(/** @type {AbortSignal | undefined} */ signal) {
    for (const { name, request, answer: expected } of this.inputs) {
      const vm = await this.restore({ signal })
      try {
        await vm.resume()
        const { answer } = await vm.invoke(request)
        if (!isDeepStrictEqual(answer, expected)) {
          const shown = [answer, expected].map((value) => JSON.stringify(value).slice(0, 200))
          throw new Error(`${this.name}, "${name}": the guest answers ${shown.join(', the host ')}`)
        }
      } finally {
        await vm.stop()
      }
    }
  }
}

export class GuestVm {
  #name
  #machine

  /**
   * @param {string} name
   * @param {Machine} machine
   */
  constructor(name, machine) {
    this.#name = name
    this.#machine = machine
  }

  get pid() {
    return this.#machine.pid
  }

  /** Times of performance.now() for spawned, qmp, loaded, resumed, answered. */
  get phases() {
    return this.#machine.phases
  }

  async resume() {
    await this.#machine.execute('cont')
    this.phases.resumed = performance.now()
  }

  /**
   * @param {any} request
   * @returns {Promise<{ answer: any, ms: number, us: number }>} `us` is the time inside the function, by the guest's clock
   */
  async invoke(request) {
    const started = performance.now()
    this.#machine.tell({ input: request })
    const { answer, us, error } = await this.#machine.heard(
      `the answer of ${this.#name}`,
      invokeDeadlineMs,
    )
    const now = performance.now()
    if (error !== undefined) throw new Error(`${this.#name} failed in the guest: ${error}`)
    this.phases.answered ??= now
    return { answer, ms: now - started, us }
  }

  /** Leaves the devices in the file `state` of QEMU's folder, and ends QEMU. */
  async save() {
    await this.#machine.execute('stop')
    await this.#machine.migrate('migrate', 'exec:cat > state')
    await this.#machine.quit() // cat(1) has written everything by then
  }

  /** Kills QEMU and waits for its exit. It leaves no file. */
  stop() {
    return this.#machine.stop()
  }
}
