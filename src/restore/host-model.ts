import { access, constants, mkdir, readFile, stat } from 'node:fs/promises'
import { homedir, release } from 'node:os'
import { dirname, join } from 'node:path'
import { ReapTraceError } from '../errors.js'
import { replaceFile, writeWhole } from '../files.js'
import { stampKey } from '../snapshot/file-stamp.js'

/** What touches the guest's memory: vCPUs of KVM, or threads of the VMM (QEMU's TCG). */
export type Vcpus = 'kvm' | 'threads'

/**
 * What it takes a guest to touch its working set: a constant, a time a page, and a time for each run: of
 * pages that are installed an extent, of mapped ones an aligned stretch of 64 KiB, which one read fault maps.
 */
export interface TouchCosts {
  readonly fixedMs: number
  readonly pageUs: number
  readonly runUs: number
}

/** From a restore request until the guest has touched its working set, with all in the page cache. */
export interface GuestCosts {
  /**
   * The memory file is mapped, and the kernel serves the faults. The page cache has it in large pieces
   * (folios), as after reading or writing it from one end to the other, or in pages, as after faults.
   */
  readonly mapped: { readonly large: TouchCosts; readonly small: TouchCosts }
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
  /**
   * What it takes to pass a page that lies by itself in the page cache, in nanoseconds: large pieces are
   * passed as fast as one of those. 1 where it cannot be told.
   */
  readonly smallLookNs: number
  readonly guests: Partial<Readonly<Record<Vcpus, GuestCosts>>>
  /** Of the disk on which it was measured. */
  readonly disk: DiskCosts
  /** What restores have shown of others, by device number. */
  readonly disks: Readonly<Record<string, Partial<DiskCosts>>>
}

/** The weight of one more restore among those before it. */
const NEWS = 0.2
const SAVE_AFTER_MS = 1000
const LOOK_AFTER_MS = 200
const LOOK_AGAIN_MS = 2000

/** The processors, as costs depend on them. */
async function cpuName(): Promise<string> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '')
  const [, model = 'unknown'] = /^(?:model name|CPU part)\s*:\s*(.*)$/m.exec(text) ?? []
  return `${text.match(/^processor\s*:/gm)?.length ?? 0} × ${model.trim()}`
}

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
  isCost(costs?.fixedMs) && isPositive(costs?.pageUs) && isCost(costs?.runUs)
const areGuestCosts = ({ mapped, installed }: GuestCosts): boolean =>
  [mapped?.large, mapped?.small, installed].every(areCosts)

const areDiskCosts = (costs: Partial<DiskCosts> | undefined): boolean =>
  [costs?.bytesPerMs, costs?.cachedBytesPerMs, costs?.extentUs].every(isPositive)

/** What a file has that can be believed: nothing of another kernel or other processors. */
async function readCosts(path: string): Promise<HostCosts | undefined> {
  try {
    const [text, cpu] = await Promise.all([readFile(path, 'utf8'), cpuName()])
    const costs = JSON.parse(text) as HostCosts
    const isOurs = costs.kernel === release() && costs.cpu === cpu
    const isWhole =
      isPositive(costs.indexUs) &&
      isPositive(costs.smallLookNs) &&
      areDiskCosts(costs.disk) &&
      Object.values(costs.guests).every(areGuestCosts) &&
      Object.values(costs.disks).every((disk) => areDiskCosts({ ...costs.disk, ...disk }))
    return isOurs && isWhole ? costs : undefined
  } catch {
    return undefined // measured again when somebody asks for it
  }
}

/** The state of a file, to see that another process has written it. */
const stateOf = (path: string): Promise<string> =>
  stat(path, { bigint: true })
    .then(stampKey, () => 'none')
    .then(String)

/** The measured costs of this host: kept in a file, refreshed by what restores show. */
export class HostModel {
  readonly path: string
  #costs: HostCosts | undefined
  #state: string
  #nextLook = 0
  /** What this process has seen and not yet kept. */
  readonly #seen = new Map<string, Partial<DiskCosts>>()
  #saving: NodeJS.Timeout | undefined

  private constructor(path: string, costs: HostCosts | undefined, state: string) {
    this.path = path
    this.#costs = costs
    this.#state = state
  }

  /** Reads it from its file. A file that is missing or cannot be believed is as none. */
  static async load(path = hostCostsPath()): Promise<HostModel> {
    const state = await stateOf(path)
    return new HostModel(path, await readCosts(path), state)
  }

  /**
   * Looks soon, and seldom, for what another process has written: no restore waits for that.
   */
  refreshSoon(): void {
    if (performance.now() < this.#nextLook) return
    this.#nextLook = performance.now() + LOOK_AGAIN_MS
    setTimeout(() => this.refresh(), LOOK_AFTER_MS).unref()
  }

  /** Takes what another process has measured or seen since. */
  async refresh(): Promise<void> {
    const state = await stateOf(this.path)
    if (state === this.#state) return
    this.#state = state
    const costs = await readCosts(this.path)
    this.#costs = costs && {
      ...costs,
      disks: { ...costs.disks, ...Object.fromEntries(this.#seen) },
    }
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
  async replace(
    costs: Omit<HostCosts, 'measuredAt' | 'kernel' | 'cpu' | 'disks'>,
  ): Promise<HostCosts> {
    this.#seen.clear()
    this.#costs = {
      measuredAt: new Date().toISOString(),
      kernel: release(),
      cpu: await cpuName(),
      ...costs,
      disks: {},
    }
    await this.#save()
    return this.#costs
  }

  /** What is known of a disk, and for the rest what was measured. */
  diskCosts(device: number): DiskCosts | undefined {
    const costs = this.#costs
    return costs && { ...costs.disk, ...costs.disks[String(device)] }
  }

  /** What one restore has shown of a disk: the first sight counts, the others move it. */
  sawDisk(device: number, seen: Partial<DiskCosts>): void {
    if (!this.#costs) return
    const name = String(device)
    const known: Partial<Record<keyof DiskCosts, number>> = { ...this.#costs.disks[name] }
    const fresh = Object.entries(seen).filter(([, value]) => isPositive(value))
    if (fresh.length === 0) return
    for (const [field, value] of fresh as [keyof DiskCosts, number][]) {
      const old = known[field]
      known[field] = old === undefined ? value : old + NEWS * (value - old)
    }
    this.#seen.set(name, known)
    this.#costs = { ...this.#costs, disks: { ...this.#costs.disks, [name]: known } }
    this.#saving ??= setTimeout(() => {
      this.#saving = undefined
      // Over what others have written meanwhile, of which ours is a part.
      this.refresh()
        .then(() => this.#save())
        .catch(() => {}) // it is measured again
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
    if (!this.#costs) return
    const bytes = Buffer.from(`${JSON.stringify(this.#costs, undefined, 2)}\n`)
    const kept = new Map(this.#seen)
    await this.prepare()
    await replaceFile(this.path, (file) => writeWhole(file, bytes, 0)).catch((error) => {
      throw this.#unkept(error instanceof ReapTraceError ? error.cause : error)
    })
    // Not what was seen while the file was written.
    for (const [name, seen] of kept) if (this.#seen.get(name) === seen) this.#seen.delete(name)
    this.#state = await stateOf(this.path)
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

/** The model of this process, as its file was some seconds ago. */
export async function hostModel(): Promise<HostModel> {
  const path = hostCostsPath()
  if (model?.path === path) {
    const loaded = await model.loaded
    loaded.refreshSoon()
    return loaded
  }
  model = { path, loaded: HostModel.load(path) }
  return model.loaded
}
