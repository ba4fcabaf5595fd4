import { randomFillSync } from 'node:crypto'
import { mkdir, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ReapTraceError } from '../errors.js'
import { writeWhole } from '../files.js'
import { checkOptions, rules } from '../options.js'
import { PAGE } from '../page.js'
import { serve } from '../uffd/serve.js'
import { Trace } from '../working-set/trace.js'
import { WorkingSet } from '../working-set/working-set.js'
import {
  calibrationPath,
  type HostCalibration,
  keepCalibration,
  type PageCosts,
  prepareToKeep,
  type Vcpus,
} from './calibration.js'
import { ReplayedGuest, replayOf, runsKvm, scattered } from './replayed-guest.js'

export interface CalibrateHostOptions {
  /**
   * Where the small snapshot that is measured is made, 145 MiB for two seconds: best a folder of the file
   * system that has the snapshots to be restored.
   * @default the folder in which the calibration is kept
   */
  readonly folder?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Called as it goes on, with a share from 0 to 1. */
  readonly onProgress?: ((progress: { readonly share: number }) => void) | undefined
}

const SET_PAGES = 4096
const RUN_PAGES = 4
const MEMORY_PAGES = 8 * SET_PAGES
/** The first round is for code that is not compiled yet, and threads that do not run yet. */
const ROUNDS = 6
const WRITTEN_SHARES = { reads: 0, writes: 0.4 } as const
type Manner = keyof typeof WRITTEN_SHARES

/**
 * Measures what a page costs on this host, mapped by the VMM and installed by a fault handler, and keeps
 * it for `planRestore()`: a small snapshot in the page cache is restored some fifty times, by threads and,
 * where /dev/kvm may be used, by a vCPU. Takes about two seconds and two cores.
 *
 * Guests run on x86-64 only; elsewhere `planRestore()` does without.
 *
 * @throws ReapTraceError
 * - `ERR_CALIBRATION`: the snapshot cannot be made, the calibration cannot be kept, or a guest failed,
 * - `ERR_NATIVE_UNAVAILABLE`: the package lacks a part.
 * @throws the reason of `signal` when it aborts.
 */
export async function calibrateHost(options: CalibrateHostOptions = {}): Promise<HostCalibration> {
  checkOptions('calibrateHost()', options, {
    folder: rules.path,
    signal: rules.signal,
    onProgress: rules.callback,
  })
  const { signal } = options
  signal?.throwIfAborted()
  await prepareToKeep()
  const parent = options.folder ?? dirname(calibrationPath())
  let folder: string | undefined
  try {
    await mkdir(parent, { recursive: true })
    folder = await mkdtemp(join(parent, 'calibrate-'))
    return await keepCalibration(await measure(await makeScene(folder), options))
  } catch (error) {
    // The end of a guest that was aborted has other words for it.
    signal?.throwIfAborted()
    throw error instanceof ReapTraceError ? error : noScene(parent, error)
  } finally {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true })
  }
}

function noScene(path: string, cause: unknown): unknown {
  const { message, errno, syscall } = cause as NodeJS.ErrnoException
  if (syscall === undefined) return cause
  const hint = 'Name a folder that may be written to, with 145 MiB of room.'
  const details = { path, errno, syscall, hint, cause }
  return new ReapTraceError('ERR_CALIBRATION', `cannot calibrate in ${path}: ${message}`, details)
}

interface Scene {
  readonly memoryFile: string
  readonly workingSet: string
  readonly socketPath: string
  readonly traces: Readonly<Record<Manner, string>>
}

/**
 * A memory file without zeros or holes. One large write leaves it in the page cache in large folios, as a VMM's
 * snapshot or a sequential read does.
 */
async function makeScene(folder: string): Promise<Scene> {
  const file = (name: string) => join(folder, name)
  const memory = randomFillSync(Buffer.allocUnsafe(MEMORY_PAGES * PAGE))
  const pages = scattered(SET_PAGES, RUN_PAGES, MEMORY_PAGES)
  const memoryFile = file('memory')
  const written = await open(memoryFile, 'wx', 0o600)
  await writeWhole(written, memory, 0).finally(() => written.close())
  const traces = { reads: file('reads'), writes: file('writes') }
  for (const [manner, share] of Object.entries(WRITTEN_SHARES)) {
    await writeFile(traces[manner as Manner], replayOf(pages, memory, share), { mode: 0o600 })
  }
  const order = {
    pageSize: PAGE,
    memoryBytes: memory.length,
    pages,
    timesUs: new Uint32Array(SET_PAGES),
  }
  await WorkingSet.fromTraces([new Trace(order)]).write(file('working-set'), {
    snapshot: { memoryFile },
  })
  return { memoryFile, workingSet: file('working-set'), socketPath: file('socket'), traces }
}

/** Rounds in which each way has its turn, so that none has the better minute. */
async function measure(
  scene: Scene,
  { signal, onProgress }: CalibrateHostOptions,
): Promise<HostCalibration['guests']> {
  const kinds: Vcpus[] = (await hasKvm(scene, signal)) ? ['threads', 'kvm'] : ['threads']
  const ways = kinds.flatMap((kind) =>
    (['reads', 'writes'] as const).flatMap((manner) =>
      (['mappedUs', 'installedUs'] as const).map((cost) => ({ kind, manner, cost })),
    ),
  )
  const times = new Map(ways.map((way) => [way, [] as number[]]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, way] of ways.entries()) {
      signal?.throwIfAborted()
      onProgress?.({ share: (round * ways.length + i) / (ROUNDS * ways.length) })
      const ms = await restoreMs(scene, way, signal)
      if (round > 0) times.get(way)!.push(ms)
    }
  }
  onProgress?.({ share: 1 })
  const costs = (kind: Vcpus, manner: Manner) =>
    Object.fromEntries(
      [...times]
        .filter(([way]) => way.kind === kind && way.manner === manner)
        .map(([{ cost }, ms]) => [cost, (1000 * median(ms)) / SET_PAGES]),
    ) as unknown as PageCosts
  return Object.fromEntries(
    kinds.map((kind) => [kind, { reads: costs(kind, 'reads'), writes: costs(kind, 'writes') }]),
  )
}

/** Whether KVM runs guests here, and this user's userfaultfd sees their faults, which are the kernel's. */
async function hasKvm(scene: Scene, signal: AbortSignal | undefined): Promise<boolean> {
  if (!(await runsKvm())) return false
  return restoreMs(scene, { kind: 'kvm', manner: 'reads', cost: 'installedUs' }, signal).then(
    () => true,
    (error) => {
      signal?.throwIfAborted()
      if (error instanceof ReapTraceError && error.code === 'ERR_CALIBRATION') return false
      throw error
    },
  )
}

/** From the request until the guest has touched all of the set. */
async function restoreMs(
  { memoryFile, workingSet, socketPath, traces }: Scene,
  { kind, manner, cost }: { kind: Vcpus; manner: Manner; cost: keyof PageCosts },
  signal: AbortSignal | undefined,
): Promise<number> {
  const guest = new ReplayedGuest(memoryFile, traces[manner], kind, signal)
  try {
    await guest.event('ready')
    const startedAt = process.hrtime.bigint()
    const handler =
      cost === 'installedUs'
        ? await serve({
            socketPath,
            snapshot: { memoryFile },
            workingSet,
            onBadWorkingSet: 'fail',
            vm: 'leave',
          })
        : undefined
    try {
      guest.go(handler ? `socket ${socketPath}` : 'file')
      const { us } = await guest.event('done')
      return us / 1000 - Number(startedAt) / 1e6
    } finally {
      await guest.end()
      await handler?.close({ vm: 'leave' }).catch(() => {})
    }
  } finally {
    await guest.end()
  }
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1]!
