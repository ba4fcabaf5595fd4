import { access, constants, mkdir, readFile } from 'node:fs/promises'
import { availableParallelism, cpus, homedir, release } from 'node:os'
import { dirname, join } from 'node:path'
import { ReapTraceError } from './errors.js'
import { replaceFile, writeWhole } from './files.js'

/** What touches the guest's memory: vCPUs of KVM, or threads of the VMM (QEMU's TCG). */
export type Vcpus = 'kvm' | 'threads'

/** What it takes a guest to touch its working set: a constant, a time a page, and a time a run of pages. */
export interface TouchCosts {
  readonly fixedMs: number
  readonly pageUs: number
  readonly extentUs: number
}

/** From a restore request until the guest has touched its working set, with all in the page cache. */
export interface GuestCosts {
  /** The memory file is mapped, and the kernel serves the faults. */
  readonly mapped: TouchCosts
  /** A fault handler installs the pages. */
  readonly installed: TouchCosts
}

/** What a disk takes to bring in what is not in the page cache. */
export interface DiskCosts {
  /** Bytes a millisecond of a working-set file, which are read past the page cache in pieces of 1 MiB. */
  readonly bytesPerMs: number
  /** Bytes a millisecond that come into the page cache, in long runs. */
  readonly cachedBytesPerMs: number
  /** A run of one page somewhere in a memory file, with the device's queue full. */
  readonly extentUs: number
}

/** What restores cost on this host, as measured here. */
export interface HostCosts {
  /** ISO 8601, in UTC: when it was measured as a whole. */
  readonly measuredAt: string
  readonly kernel: string
  readonly cpu: string
  /** What a process takes to read the index of a working-set file that it has not read before, a page. */
  readonly indexUs: number
  readonly guests: Partial<Readonly<Record<Vcpus, GuestCosts>>>
  /** By device number; `default` is the disk on which it was measured. */
  readonly disks: Readonly<Record<string, DiskCosts>>
}

/** The rate of workers that have read for so long in all; the engine has two to four (native/engine.cc). */
export const readRate = (bytes: number, fetchMs: number): number =>
  (bytes / fetchMs) * Math.min(Math.max(availableParallelism(), 2), 4)

/** The weight of one more restore among those before it. */
const NEWS = 0.2
const SAVE_AFTER_MS = 1000

const cpuName = (): string => `${cpus().length} × ${cpus()[0]?.model.trim() ?? 'unknown'}`

/** Where the costs of this host are kept, unless `REAP_TRACE_HOST_COSTS` names another file. */
export function hostCostsPath(): string {
  const named = process.env.REAP_TRACE_HOST_COSTS
  if (named) return named
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'reap-trace/host-costs.json')
}

const isPositive = (value: unknown): value is number =>
  typeof value === 'number' && Number.isFinite(value) && value > 0
const isCost = (value: unknown): boolean => value === 0 || isPositive(value)
const areCosts = (costs: TouchCosts | undefined): boolean =>
  isCost(costs?.fixedMs) && isPositive(costs?.pageUs) && isCost(costs?.extentUs)

/** What of a file can be believed: nothing of another kernel or other processors. */
function believable(costs: HostCosts): boolean {
  return (
    costs.kernel === release() &&
    costs.cpu === cpuName() &&
    isPositive(costs.indexUs) &&
    Object.values(costs.guests).every(
      ({ mapped, installed }) => areCosts(mapped) && areCosts(installed),
    ) &&
    Object.values(costs.disks).every(
      ({ bytesPerMs, cachedBytesPerMs, extentUs }) =>
        isPositive(bytesPerMs) && isPositive(cachedBytesPerMs) && isPositive(extentUs),
    )
  )
}

/** The measured costs of this host: kept in a file, refreshed by what restores show. */
export class HostModel {
  readonly path: string
  #costs: HostCosts | undefined
  #saving: NodeJS.Timeout | undefined

  private constructor(path: string, costs: HostCosts | undefined) {
    this.path = path
    this.#costs = costs
  }

  /** Reads it from its file. A file that is missing or cannot be believed is as none. */
  static async load(path = hostCostsPath()): Promise<HostModel> {
    try {
      const costs = JSON.parse(await readFile(path, 'utf8')) as HostCosts
      if (believable(costs)) return new HostModel(path, costs)
    } catch {
      // Measured again when somebody asks for it.
    }
    return new HostModel(path, undefined)
  }

  /** `undefined` before anything was measured. */
  get costs(): HostCosts | undefined {
    return this.#costs
  }

  /**
   * Takes what was measured as a whole, and keeps it.
   *
   * @throws ReapTraceError `ERR_WORKING_SET_IO` where that cannot be; the costs count all the same.
   */
  async replace(costs: Omit<HostCosts, 'measuredAt' | 'kernel' | 'cpu'>): Promise<HostCosts> {
    this.#costs = {
      measuredAt: new Date().toISOString(),
      kernel: release(),
      cpu: cpuName(),
      ...costs,
    }
    await this.#save()
    return this.#costs
  }

  diskCosts(device: number): { costs: DiskCosts; isKnown: boolean } | undefined {
    const disks = this.#costs?.disks
    const own = disks?.[String(device)]
    const costs = own ?? disks?.default
    return costs && { costs, isKnown: own !== undefined }
  }

  /** What one restore has shown of a disk. */
  sawDisk(device: number, seen: Partial<DiskCosts>): void {
    const before = this.diskCosts(device)
    if (!this.#costs || !before) return
    const mix = (old: number, fresh: number | undefined) =>
      isPositive(fresh) ? (before.isKnown ? old + NEWS * (fresh - old) : fresh) : old
    const costs = {
      bytesPerMs: mix(before.costs.bytesPerMs, seen.bytesPerMs),
      cachedBytesPerMs: mix(before.costs.cachedBytesPerMs, seen.cachedBytesPerMs),
      extentUs: mix(before.costs.extentUs, seen.extentUs),
    }
    this.#costs = { ...this.#costs, disks: { ...this.#costs.disks, [device]: costs } }
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined
      this.#save().catch(() => {}) // it is measured again
    }, SAVE_AFTER_MS).unref()
  }

  /**
   * Makes the folder of its file.
   *
   * @throws ReapTraceError `ERR_WORKING_SET_IO`.
   */
  async prepare(): Promise<void> {
    const folder = dirname(this.path)
    await mkdir(folder, { recursive: true }).catch((cause) => {
      throw this.#unkept(cause)
    })
    await access(folder, constants.W_OK | constants.X_OK).catch((cause) => {
      throw this.#unkept(cause)
    })
  }

  async #save(): Promise<void> {
    const bytes = Buffer.from(`${JSON.stringify(this.#costs, undefined, 2)}\n`)
    await this.prepare()
    await replaceFile(this.path, (file) => writeWhole(file, bytes, 0)).catch((error) => {
      throw this.#unkept(error instanceof ReapTraceError ? error.cause : error)
    })
  }

  #unkept(cause: unknown): ReapTraceError {
    const { message, errno, syscall } = cause as NodeJS.ErrnoException
    return new ReapTraceError(
      'ERR_WORKING_SET_IO',
      `the costs of this host cannot be kept in ${this.path}: ${message}`,
      {
        path: this.path,
        errno,
        syscall,
        hint: 'Name a file that may be written to in REAP_TRACE_HOST_COSTS.',
        cause,
      },
    )
  }
}

let model: { readonly path: string; readonly loaded: Promise<HostModel> } | undefined

/** The model of this process, read when it is first needed, and when another file is named. */
export function hostModel(): Promise<HostModel> {
  const path = hostCostsPath()
  if (model?.path !== path) model = { path, loaded: HostModel.load(path) }
  return model.loaded
}
