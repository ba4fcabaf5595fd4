import { randomFillSync } from 'node:crypto'
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { ReapTraceError } from '../errors.js'
import { describeCall, writeWhole } from '../files.js'
import { checkOptions, rules } from '../options.js'
import { PAGE } from '../page.js'
import { serve } from '../uffd/serve.js'
import { median } from '../working-set/merge.js'
import { Trace } from '../working-set/trace.js'
import { WorkingSet } from '../working-set/working-set.js'
import {
  calibrationPath,
  type HostCalibration,
  type PageCosts,
  prepareToSave,
  saveCalibration,
  type Vcpus,
} from './calibration.js'
import { ReplayedGuest, replayOf, runsKvm, scattered } from './replayed-guest.js'

/** Options of {@link calibrateHost}. */
export interface CalibrateHostOptions {
  /**
   * Existing folder for a temporary snapshot of 145 MiB, preferably on the file system that holds
   * the snapshots.
   * @default the folder of the calibration file, which is created if it does not exist
   */
  readonly folder?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Called with the share of the work done, from 0 to 1. */
  readonly onProgress?: ((progress: { readonly share: number }) => void) | undefined
}

const SET_PAGES = 4096
const RUN_PAGES = 4
const MEMORY_PAGES = 8 * SET_PAGES
/** The first round is a warm-up. */
const ROUNDS = 6
const WRITTEN_SHARES = { reads: 0, writes: 0.4 } as const
type Access = keyof typeof WRITTEN_SHARES

/**
 * Measures the cost of a page on this host, mapped by the VMM and installed by a fault handler, and
 * saves it for `planRestore()`. Restores a small snapshot in the page cache about fifty times, by
 * threads and, if /dev/kvm is usable, by a vCPU. Takes about two seconds and two cores.
 *
 * Guests run on x86-64 only; elsewhere `planRestore()` works without a calibration.
 *
 * @throws ReapTraceError
 * - `ERR_CALIBRATION`: the snapshot cannot be created, the calibration cannot be saved, or a guest
 *   failed,
 * - `ERR_NATIVE_UNAVAILABLE`: a native part of the package is missing.
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
  await prepareToSave()
  const parent = options.folder ?? dirname(calibrationPath())
  checkLength(parent)
  let folder: string | undefined
  try {
    folder = await mkdtemp(join(parent, 'calibrate-'))
    return await saveCalibration(await measure(await makeScene(folder), options))
  } catch (error) {
    // An abort makes the guest fail with another error.
    signal?.throwIfAborted()
    throw error instanceof ReapTraceError ? error : noScene(parent, error)
  } finally {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true })
  }
}

/** @throws ReapTraceError `ERR_CALIBRATION`: the path of the socket would be too long. */
function checkLength(path: string): void {
  const rest = '/calibrate-XXXXXX/socket'.length
  if (rules.socketPath.accepts('x'.repeat(Buffer.byteLength(path) + rest))) return
  const message = `cannot calibrate in ${path}: its path is too long for a socket`
  const hint = `Set REAP_TRACE_CALIBRATION, or choose a folder, with at most ${107 - rest} bytes.`
  throw new ReapTraceError('ERR_CALIBRATION', message, { path, check: 'path-length', hint })
}

function noScene(path: string, cause: unknown): unknown {
  const failed = cause as NodeJS.ErrnoException
  const { errno, syscall } = failed
  if (syscall === undefined) return cause
  const why = describeCall(failed, 'write').cause
  const hint = 'Choose an existing, writable folder with 145 MiB of free space.'
  const details = { path, errno, syscall, hint, cause }
  return new ReapTraceError('ERR_CALIBRATION', `cannot calibrate in ${path}: ${why}`, details)
}

interface Scene {
  readonly memoryFile: string
  readonly workingSet: string
  readonly socketPath: string
  readonly traces: Readonly<Record<Access, string>>
}

/**
 * A memory file without zeros or holes. One large write leaves it in the page cache in large
 * folios, as a VMM's snapshot or a sequential read does.
 */
async function makeScene(folder: string): Promise<Scene> {
  const file = (name: string) => join(folder, name)
  const memory = randomFillSync(Buffer.allocUnsafe(MEMORY_PAGES * PAGE))
  const pages = scattered(SET_PAGES, RUN_PAGES, MEMORY_PAGES)
  const memoryFile = file('memory')
  const written = await open(memoryFile, 'wx', 0o600)
  await writeWhole(written, memory, 0).finally(() => written.close())
  const traces = { reads: file('reads'), writes: file('writes') }
  for (const [access, share] of Object.entries(WRITTEN_SHARES)) {
    await writeFile(traces[access as Access], replayOf(pages, memory, share), { mode: 0o600 })
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

/** Measures in interleaved rounds, so that a noisy period affects every configuration alike. */
async function measure(
  scene: Scene,
  { signal, onProgress }: CalibrateHostOptions,
): Promise<HostCalibration['guests']> {
  const kinds: Vcpus[] = (await hasKvm(scene, signal)) ? ['threads', 'kvm'] : ['threads']
  const configurations = kinds.flatMap((kind) =>
    (['reads', 'writes'] as const).flatMap((access) =>
      (['mappedUs', 'installedUs'] as const).map((cost) => ({ kind, access, cost })),
    ),
  )
  const times = new Map(configurations.map((configuration) => [configuration, [] as number[]]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const [i, configuration] of configurations.entries()) {
      signal?.throwIfAborted()
      onProgress?.({
        share: (round * configurations.length + i) / (ROUNDS * configurations.length),
      })
      const ms = await restoreMs(scene, configuration, signal)
      if (round > 0) times.get(configuration)!.push(ms)
    }
  }
  onProgress?.({ share: 1 })
  const costs = (kind: Vcpus, access: Access) =>
    Object.fromEntries(
      [...times]
        .filter(([{ kind: k, access: a }]) => k === kind && a === access)
        .map(([{ cost }, ms]) => [cost, (1000 * median(ms)) / SET_PAGES]),
    ) as unknown as PageCosts
  return Object.fromEntries(
    kinds.map((kind) => [kind, { reads: costs(kind, 'reads'), writes: costs(kind, 'writes') }]),
  )
}

/**
 * Whether KVM runs guests here, and this user's userfaultfd handles their faults, which are in
 * kernel mode.
 */
async function hasKvm(scene: Scene, signal: AbortSignal | undefined): Promise<boolean> {
  if (!(await runsKvm())) return false
  return restoreMs(scene, { kind: 'kvm', access: 'reads', cost: 'installedUs' }, signal).then(
    () => true,
    (error) => {
      signal?.throwIfAborted()
      if (error instanceof ReapTraceError && error.code === 'ERR_CALIBRATION') return false
      throw error
    },
  )
}

/** Time from the request until the guest has touched the whole set, in milliseconds. */
async function restoreMs(
  { memoryFile, workingSet, socketPath, traces }: Scene,
  { kind, access, cost }: { kind: Vcpus; access: Access; cost: keyof PageCosts },
  signal: AbortSignal | undefined,
): Promise<number> {
  const guest = new ReplayedGuest(memoryFile, traces[access], kind, signal)
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
