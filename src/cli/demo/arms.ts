import { stat } from 'node:fs/promises'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { type FaultHandler, type FaultStats, serve, type Trace } from '../../index.js'
import { CliError } from '../terminal/failure.js'
import { formatBytes, formatPlural } from '../terminal/units.js'
import { buildSnapshot, GuestProcess } from './guest-process.js'

export const arms = ['kernel-file', 'on-demand', 'working-set'] as const
export type Arm = (typeof arms)[number]
export const caches = ['cold', 'warm'] as const
export type Cache = (typeof caches)[number]

/** One restore with one request. */
export interface Sample {
  /** From the restore request to the response, on our clock. */
  readonly responseMs: number
  /** What the guest waited for: the handler's faults, or the kernel's for `kernel-file`. */
  readonly faults: number
  readonly lateFaults: number
  readonly residualFaults: number
  readonly response: string
  /** Of all recorded pages, as they are after the request. Empty where the guest checks its pages. */
  readonly digest: string
}

/** What every restore is of. */
export interface Scene {
  readonly memoryFile: string
  readonly memoryBytes: number
  readonly workingSet: string
  /** Numbers of the recorded pages, as 32-bit words. */
  readonly pageList: string
  /** A new socket path for each restore. */
  readonly socketPath: () => string
  readonly signal: AbortSignal
}

/** A kind of guest that the demo restores. */
export interface Subject {
  /** The request to record, and another one. */
  readonly inputs: readonly [recorded: string, other: string]
  /** Makes the snapshot, and says of what. */
  build(scene: Scene): Promise<{ readonly says: string; readonly vmm: string | null }>
  record(scene: Scene, input: string): Promise<{ trace: Trace; response: string }>
  sample(scene: Scene, arm: Arm, cache: Cache, input: string): Promise<Sample>
}

/** A small in-memory store in a process that restores as a VMM does. */
export const embeddedSubject: Subject = {
  inputs: ['the-recorded-request', 'another-request'],
  async build({ memoryFile, memoryBytes, signal }) {
    const { dataPages, documents } = await buildSnapshot(memoryFile, memoryBytes, signal)
    const says =
      `a guest with ${formatPlural(documents, 'document')} in ${formatBytes(memoryBytes)} of ` +
      `memory, ${formatBytes(dataPages * 4096)} of it in use`
    return { says, vmm: null }
  },
  record: (scene, input) =>
    withGuest(scene.signal, async (guest) => {
      const { memoryFile, memoryBytes } = scene
      const socketPath = scene.socketPath()
      const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
      return whileServed(handler, async () => {
        const { response } = await guest.send<{ response: string }>(
          `invoke uffd ${socketPath} ${memoryBytes} ${input}`,
        )
        return { trace: handler.stopRecording(), response }
      })
    }),
  sample: (scene, arm, cache, input) =>
    withGuest(scene.signal, async (guest) => {
      await setCache(guest, cache, [scene.memoryFile, scene.workingSet])
      const restore = arm === 'kernel-file' ? restoreFromFile : restoreThroughHandler
      return restore(scene, guest, arm, input)
    }),
}

export const noFaults = { faults: 0, lateFaults: 0, residualFaults: 0 }

/** Runs `body` with a VMM that is ready before its restore is asked for, as pooled ones are. */
export async function withGuest<T>(
  signal: AbortSignal,
  body: (guest: GuestProcess) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted()
  const guest = await GuestProcess.start()
  const onAbort = () => void guest.kill()
  signal.addEventListener('abort', onAbort)
  try {
    return await body(guest)
  } finally {
    signal.removeEventListener('abort', onAbort)
    await guest.kill()
  }
}

async function restoreFromFile(
  scene: Scene,
  guest: GuestProcess,
  _arm: Arm,
  input: string,
): Promise<Sample> {
  const before = await guest.kernelFaults()
  const start = performance.now()
  const { response } = await guest.send<{ response: string }>(
    `invoke file ${scene.memoryFile} ${input}`,
  )
  const responseMs = performance.now() - start
  const faults = (await guest.kernelFaults()) - before
  return { ...noFaults, responseMs, faults, response, digest: await digestOf(scene, guest) }
}

export const prefetching = (workingSet: string) =>
  ({ workingSet, onBadWorkingSet: 'fail', onStaleWorkingSet: 'warn' }) as const

async function restoreThroughHandler(
  scene: Scene,
  guest: GuestProcess,
  arm: Arm,
  input: string,
): Promise<Sample> {
  const { memoryFile, memoryBytes, workingSet } = scene
  const socketPath = scene.socketPath()
  const options = arm === 'working-set' ? prefetching(workingSet) : { record: false }
  const start = performance.now()
  const handler = await serve({ socketPath, snapshot: { memoryFile }, ...options })
  return whileServed(handler, async () => {
    const { response } = await guest.send<{ response: string }>(
      `invoke uffd ${socketPath} ${memoryBytes} ${input}`,
    )
    const responseMs = performance.now() - start
    const { faults, lateFaults, residualFaults }: FaultStats = handler.stats()
    await handler.prefetched
    const digest = await digestOf(scene, guest)
    return { responseMs, faults, lateFaults, residualFaults, response, digest }
  })
}

/** Runs `body` and ends the session; its failure explains one of `body`. */
export async function whileServed<T>(handler: FaultHandler, body: () => Promise<T>): Promise<T> {
  try {
    const failed = handler.closed.then(
      () => new Promise<never>(() => {}),
      (error) => Promise.reject(error),
    )
    return await Promise.race([body(), failed])
  } finally {
    await handler.close().catch(() => {})
  }
}

const digestOf = async (scene: Scene, guest: GuestProcess): Promise<string> =>
  (await guest.send<{ digest: string }>(`digest-pages ${scene.pageList}`)).digest

interface Residency {
  readonly resident: number
  readonly pages: number
}

const PAGE = 4096
const EVICT_ATTEMPTS = 20
const EVICT_PAUSE_MS = 10

/** Whether a file can be dropped from the page cache: all of it, or "cold" would not be true. */
export async function canEvict(guest: GuestProcess, file: string): Promise<boolean> {
  // A page that is under I/O or in a CPU's own list stays for a moment.
  for (let attempt = 0; attempt < EVICT_ATTEMPTS; attempt++) {
    if ((await guest.send<Residency>(`evict ${file}`)).resident === 0) return true
    await sleep(EVICT_PAUSE_MS)
  }
  return false
}

export async function setCache(
  guest: GuestProcess,
  cache: Cache,
  files: readonly string[],
): Promise<void> {
  for (const file of files) {
    if (cache === 'cold') {
      if (await canEvict(guest, file)) continue
      throw new CliError(
        'ERR_DEMO_FAILED',
        `${file} could not be evicted from the page cache, so that nothing cold can be measured`,
        'Does another process use it? Try again, or choose another folder with --keep.',
      )
    }
    // Holes are read too, and stay where the file system caches them.
    const { resident, pages } = await guest.send<Residency>(`resident ${file}`)
    if (resident === pages) continue
    const after = await guest.send<Residency>(`warm ${file}`)
    if (after.resident * PAGE < Math.min((await stat(file)).blocks * 512, after.pages * PAGE)) {
      throw new CliError(
        'ERR_DEMO_FAILED',
        `${file} does not stay in the page cache, so that nothing warm can be measured`,
        'This machine is short of memory: try a smaller --memory-size.',
      )
    }
  }
}
