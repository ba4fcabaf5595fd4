import { randomFillSync } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, mkdtemp, rm, statfs, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { checkOptions, rules } from '../options.js'
import { PAGE } from '../page.js'
import { prefetchPageCache } from '../page-cache/prefetch.js'
import { surveyFiles } from '../page-cache/residency.js'
import type { PrefetchResult } from '../uffd/fault-handler.js'
import { serve } from '../uffd/serve.js'
import { Trace } from '../working-set/trace.js'
import { WorkingSet } from '../working-set/working-set.js'
import { WINDOW_PAGES } from './choice.js'
import {
  type DiskCosts,
  type GuestCosts,
  type HostCosts,
  hostModel,
  type TouchCosts,
  type Vcpus,
} from './host-model.js'
import { ReplayedGuest, replayOf, runsKvm, scattered } from './replayed-guest.js'

export interface MeasureHostOptions {
  /**
   * Where the snapshot that is measured is made, 330 MiB for some seconds: a folder on the disk that has
   * the snapshots to be restored.
   * @default the folder in which the figures are kept
   */
  readonly folder?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Told as it goes on: a share from 0 to 1. */
  readonly onProgress?: ((progress: { readonly share: number }) => void) | undefined
}

/** Working sets whose differences show what a page and a run of pages cost: an eighth of the memory each. */
const SCENES = [
  { pages: 1024, run: 2 },
  { pages: 8192, run: 2 },
  { pages: 8192, run: 64 },
] as const
const MEMORY_PAGES = 65536
const SINGLE_PAGES = 2048
const ROUNDS = 5
/** The first restores of a process compile its code and start the engine's threads. */
const WARM_UPS = 3

interface Scene {
  readonly pages: number
  readonly extents: number
  readonly windows: number
  readonly trace: string
  readonly workingSet: string
}

/**
 * Measures on this host what a restore costs in each way, and keeps it for `prepareRestore()`: small
 * snapshots are restored from the page cache and from the disk, by threads and, where /dev/kvm may be
 * used, by a vCPU. Takes seven to ten seconds and both cores of a small machine: at a service's start, say.
 *
 * Guests are measured on x86-64 only; elsewhere `prepareRestore()` chooses without.
 *
 * @throws ReapTraceError
 * - `ERR_WORKING_SET_IO`: the folder cannot be written to, or the figures not be kept,
 * - `ERR_PAGE_CACHE`: the folder is in memory (tmpfs), where nothing is read from a disk,
 * - `ERR_NATIVE_UNAVAILABLE`: the machine gives no userfaultfd, or the package lacks a part.
 * @throws the reason of `signal` when it aborts.
 */
export async function measureHost(options: MeasureHostOptions = {}): Promise<HostCosts> {
  checkOptions('measureHost()', options, {
    folder: rules.path,
    signal: rules.signal,
    onProgress: rules.callback,
  })
  const { signal, onProgress } = options
  signal?.throwIfAborted()
  const model = await hostModel()
  await model.prepare()
  const parent = options.folder ?? dirname(model.path)
  let folder: string
  try {
    await mkdir(parent, { recursive: true })
    folder = await mkdtemp(join(parent, 'measure-'))
  } catch (cause) {
    const { message, errno, syscall } = cause as NodeJS.ErrnoException
    throw new ReapTraceError('ERR_WORKING_SET_IO', `cannot measure in ${parent}: ${message}`, {
      path: parent,
      errno,
      syscall,
      hint: 'Name a folder that may be written to.',
      cause,
    })
  }
  try {
    await refuseMemory(parent)
    return await new Measurement(folder, signal, onProgress).run()
  } catch (error) {
    signal?.throwIfAborted() // what was ended with it says so in other words
    throw error
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** TMPFS_MAGIC of linux/magic.h. */
const TMPFS = 0x01021994

async function refuseMemory(folder: string): Promise<void> {
  if ((await statfs(folder)).type !== TMPFS) return
  throw new ReapTraceError(
    'ERR_PAGE_CACHE',
    `reads of ${folder} cannot be measured: it is a tmpfs`,
    {
      path: folder,
      check: 'stays',
      hint: 'Name a folder on the disk that has the snapshots.',
    },
  )
}

const PIECES = ['large', 'small'] as const
/** In what the page cache has a file: {@link GuestCosts}. */
type Pieces = (typeof PIECES)[number]

/** Of a kind of guest: for each scene what its restores took, in milliseconds. */
class Times {
  readonly mapped = { large: noTimes(), small: noTimes() }
  readonly installed = noTimes()

  costs(scenes: readonly Scene[]): GuestCosts {
    const mapped = (pieces: Pieces) =>
      touchCosts(scenes, this.mapped[pieces].map(middleOf), ({ windows }) => windows)
    return {
      mapped: { large: mapped('large'), small: mapped('small') },
      installed: touchCosts(scenes, this.installed.map(middleOf), ({ extents }) => extents),
    }
  }
}

const noTimes = (): number[][] => SCENES.map(() => [])

class Measurement {
  readonly #folder: string
  readonly #memoryFile: string
  readonly #socketPath: string
  readonly #signal: AbortSignal | undefined
  readonly #onProgress: MeasureHostOptions['onProgress']
  #done = 0

  constructor(
    folder: string,
    signal: AbortSignal | undefined,
    onProgress: MeasureHostOptions['onProgress'],
  ) {
    this.#folder = folder
    this.#memoryFile = join(folder, 'memory')
    this.#socketPath = join(folder, 'socket')
    this.#signal = signal
    this.#onProgress = onProgress
  }

  async run(): Promise<HostCosts> {
    const model = await hostModel()
    const scenes = await this.#makeScenes()
    const [, middle, long] = scenes
    const kinds: Vcpus[] = (await this.#kvmIsUsable(middle)) ? ['threads', 'kvm'] : ['threads']
    const total = WARM_UPS + PIECES.length * kinds.length * SCENES.length * ROUNDS + ROUNDS
    const step = () => {
      this.#signal?.throwIfAborted()
      this.#onProgress?.({ share: Math.min(1, this.#done++ / total) })
    }
    for (let i = 0; i < WARM_UPS; i++) {
      step()
      await this.#restore(middle, 'threads', true)
    }
    const times = new Map(kinds.map((kind) => [kind, new Times()]))
    let smallLookNs = 1
    for (const pieces of PIECES) {
      await this.#fillPageCache(pieces)
      for (let round = 0; round < ROUNDS; round++) {
        for (const [kind, { mapped, installed }] of times) {
          for (const [i, scene] of scenes.entries()) {
            step()
            mapped[pieces][i]!.push(await this.#restore(scene, kind, false))
            installed[i]!.push(await this.#restore(scene, kind, true))
          }
        }
      }
      const { lookNs } = await surveyFiles(this.#memoryFile, middle.workingSet)
      if (pieces === 'small') smallLookNs = lookNs ?? 1
    }
    const guests = Object.fromEntries(
      [...times].map(([kind, each]) => [kind, each.costs(scenes)] as const),
    )
    const disk = await this.#measureDisk(middle, long, step)
    this.#onProgress?.({ share: 1 })
    return model.replace({
      indexUs: await indexUs(middle),
      smallLookNs,
      guests,
      disk,
    })
  }

  /** Whether KVM's guests run here, and this user's userfaultfd has their faults, which are the kernel's. */
  async #kvmIsUsable(scene: Scene): Promise<boolean> {
    if (!(await runsKvm())) return false
    return this.#restore(scene, 'kvm', true).then(
      () => true,
      (error) => {
        this.#signal?.throwIfAborted()
        if (error instanceof ReapTraceError && error.code === 'ERR_NATIVE_UNAVAILABLE') return false
        throw error
      },
    )
  }

  /** One memory file without zeros or holes, and a working set of each size in it. */
  async #makeScenes(): Promise<[Scene, Scene, Scene]> {
    const memory = randomFillSync(Buffer.allocUnsafe(MEMORY_PAGES * PAGE))
    await writeFile(this.#memoryFile, memory, { mode: 0o600, flush: true })
    const make = async ({ pages: count, run }: (typeof SCENES)[number]): Promise<Scene> => {
      this.#signal?.throwIfAborted()
      const pages = scattered(count, run)
      const trace = join(this.#folder, `trace-${count}-${run}`)
      await writeFile(trace, replayOf(pages, memory), { mode: 0o600 })
      const workingSet = join(this.#folder, `working-set-${count}-${run}`)
      const set = WorkingSet.fromTraces([
        new Trace({
          pageSize: PAGE,
          memoryBytes: memory.length,
          pages,
          timesUs: Uint32Array.from(pages, (_, i) => i),
        }),
      ])
      await set.write(workingSet, { memoryFile: this.#memoryFile, signal: this.#signal })
      const windows = new Set(pages.map((page) => Math.floor(page / WINDOW_PAGES))).size
      return { pages: count, extents: set.extents.length, windows, trace, workingSet }
    }
    return [await make(SCENES[0]), await make(SCENES[1]), await make(SCENES[2])]
  }

  /**
   * Large pieces come of reading in one go, small ones of single requests. A file that was just written
   * lies in large ones.
   */
  async #fillPageCache(pieces: Pieces): Promise<void> {
    await evict([this.#memoryFile])
    if (pieces === 'large') {
      for await (const _ of createReadStream(this.#memoryFile, { highWaterMark: 2 ** 20 })) {
        this.#signal?.throwIfAborted()
      }
      return
    }
    const pages = Uint32Array.from({ length: MEMORY_PAGES }, (_, page) => page)
    const { error } = await prefetchPageCache({
      memoryFile: this.#memoryFile,
      workingSet: placesOf(pages),
      budgetBytes: MEMORY_PAGES * PAGE,
      signal: this.#signal,
    })
    this.#signal?.throwIfAborted()
    if (error) throw error
  }

  /** Milliseconds from the request until the guest has touched all of the set. */
  async #restore(
    scene: Scene,
    kind: Vcpus,
    installed: boolean,
    onPrefetched?: (result: PrefetchResult) => void,
  ): Promise<number> {
    const guest = new ReplayedGuest(this.#memoryFile, scene.trace, kind, this.#signal)
    try {
      await guest.event('ready')
      const startedAt = performance.now()
      const handler = installed
        ? await serve({
            socketPath: this.#socketPath,
            memoryFile: this.#memoryFile,
            workingSet: scene.workingSet,
            onBadWorkingSet: 'fail',
            onFailure: 'leave-vm',
          })
        : undefined
      try {
        guest.go(installed ? `socket ${this.#socketPath}` : 'file')
        const { us } = await guest.event('done')
        if (handler && onPrefetched) onPrefetched(await handler.prefetched)
        return us / 1000 - (startedAt + clockOffsetMs())
      } finally {
        await guest.end()
        await handler?.close({ vm: 'leave' })
      }
    } finally {
      await guest.end()
    }
  }

  async #measureDisk(middle: Scene, long: Scene, step: () => void): Promise<DiskCosts> {
    const bytesPerMs: number[] = []
    const singleMs: number[] = []
    const longMs: number[] = []
    // Far from each other: what they take is not their bytes.
    const pages = scattered(SINGLE_PAGES, 1, MEMORY_PAGES / SINGLE_PAGES)
    const single = placesOf(pages)
    const broughtInMs = async (workingSet: WorkingSet | string) => {
      await evict([this.#memoryFile])
      const { thereMs } = await prefetchPageCache({ memoryFile: this.#memoryFile, workingSet })
      return thereMs
    }
    for (let round = 0; round < ROUNDS; round++) {
      step()
      await evict([this.#memoryFile, middle.workingSet])
      await this.#restore(middle, 'threads', true, ({ bytes, fetchMs }) => {
        bytesPerMs.push(bytes / fetchMs)
      })
      singleMs.push(await broughtInMs(single))
      longMs.push(await broughtInMs(long.workingSet))
    }
    return {
      bytesPerMs: middleOf(bytesPerMs),
      cachedBytesPerMs: (long.pages * PAGE) / middleOf(longMs),
      extentUs: (middleOf(singleMs) * 1000) / single.pages,
    }
  }
}

/** A working set that is in no file. */
const placesOf = (pages: Uint32Array): WorkingSet =>
  WorkingSet.fromTraces([
    new Trace({
      pageSize: PAGE,
      memoryBytes: MEMORY_PAGES * PAGE,
      pages,
      timesUs: new Uint32Array(pages.length),
    }),
  ])

/** A recording begins with an eviction that is checked. */
async function evict(paths: readonly string[]): Promise<void> {
  const recorder = await native().startRecording(paths, 1e6)
  if (isFailure(recorder))
    throw toError({ ...recorder, offset: 0n }, { memoryFile: paths[Number(recorder.offset)]! })
  await native().stopRecording(recorder)
}

/** A page's part in reading a set's index, by code that is compiled. */
async function indexUs({ workingSet, pages }: Scene): Promise<number> {
  const times: number[] = []
  for (let round = 0; round < ROUNDS; round++) {
    const startedAt = performance.now()
    await WorkingSet.read(workingSet)
    times.push(performance.now() - startedAt)
  }
  return (middleOf(times) * 1000) / pages
}

/** CLOCK_MONOTONIC, which guests tell, when performance.now() is 0. */
const clockOffsetMs = (): number => Number(process.hrtime.bigint()) / 1e6 - performance.now()

/**
 * Splits the times of the three scenes into what is constant, a page's and a run's. A cost below
 * nothing is noise.
 */
function touchCosts(
  scenes: readonly Scene[],
  times: readonly number[],
  runsOf: (scene: Scene) => number,
): TouchCosts {
  const [small, middle, long] = scenes as [Scene, Scene, Scene]
  const [smallMs = 0, middleMs = 0, longMs = 0] = times
  const runMs = Math.max(0, (middleMs - longMs) / (runsOf(middle) - runsOf(long)))
  const moreMs = middleMs - smallMs - runMs * (runsOf(middle) - runsOf(small))
  const pageMs = Math.max(1e-5, moreMs / (middle.pages - small.pages))
  return {
    fixedMs: Math.max(0, smallMs - pageMs * small.pages - runMs * runsOf(small)),
    pageUs: pageMs * 1000,
    runUs: runMs * 1000,
  }
}

const middleOf = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0
