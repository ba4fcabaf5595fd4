import { readFile } from 'node:fs/promises'
import { performance } from 'node:perf_hooks'
import { type FaultHandler, type MemBackend, serve, type Trace } from '../../index.js'
import { type Cache, setCache } from '../measure/page-cache.js'
import { CliError } from '../terminal/failure.js'
import { formatBytes, formatPlural } from '../terminal/units.js'
import { buildSnapshot, GuestProcess } from './guest-process.js'

export const arms = ['kernel-file', 'on-demand', 'working-set'] as const
export type Arm = (typeof arms)[number]

/** One restore with one request. */
export interface Sample {
  /** Time from the restore request to the response. */
  readonly responseMs: number
  /** Number of faults served by the handler, or by the kernel for `kernel-file`. */
  readonly faults: number
  readonly lateFaults: number
  readonly residualFaults: number
  readonly response: string
  /** Digest of all recorded pages after the request; empty if the guest checks its pages itself. */
  readonly digest: string
}

/** Files of the demo. */
export interface Scene {
  readonly memoryFile: string
  readonly memoryBytes: number
  readonly workingSet: string
  /** Path of the numbers of the recorded pages, as 32-bit words. */
  readonly pageList: string
  /** Returns a new socket path for each restore. */
  readonly socketPath: () => string
  readonly signal: AbortSignal
}

/** A kind of guest that the demo restores. */
export interface Subject {
  /** A request to record, and another one. */
  readonly inputs: readonly [recorded: string, other: string]
  /** Builds the snapshot. */
  build(scene: Scene): Promise<{ readonly description: string; readonly vmm: string | null }>
  record(scene: Scene, input: string): Promise<{ trace: Trace; response: string }>
  sample(scene: Scene, arm: Arm, cache: Cache, input: string): Promise<Sample>
}

/** A small in-memory store in a process that restores like a VMM. */
export const embeddedSubject: Subject = {
  inputs: ['the-recorded-request', 'another-request'],
  async build({ memoryFile, memoryBytes, signal }) {
    const { dataPages, documents } = await buildSnapshot(memoryFile, memoryBytes, signal)
    const description =
      `a guest with ${formatPlural(documents, 'document')} in ${formatBytes(memoryBytes)} of ` +
      `memory, ${formatBytes(dataPages * 4096)} of it in use`
    return { description, vmm: null }
  },
  record: (scene, input) =>
    withGuest(scene.signal, (guest) =>
      record(scene, (backend) => invoke(guest, scene, backend, input)),
    ),
  sample: (scene, arm, cache, input) =>
    withGuest(scene.signal, async (guest) => {
      await setCacheOrFail(guest, cache, [scene.memoryFile, scene.workingSet])
      const request = (backend: MemBackend) => invoke(guest, scene, backend, input)
      return measure(scene, arm, guest.pid, request, () => digestOf(scene, guest))
    }),
}

/** Restores the embedded guest with this backend and sends it a request. */
async function invoke(
  guest: GuestProcess,
  { memoryBytes }: Scene,
  { backend_type, backend_path }: MemBackend,
  input: string,
): Promise<string> {
  const restored =
    backend_type === 'File' ? `file ${backend_path}` : `uffd ${backend_path} ${memoryBytes}`
  return (await guest.send<{ response: string }>(`invoke ${restored} ${input}`)).response
}

/** Restores a snapshot with a backend, and returns the response to a request. */
type Request = (backend: MemBackend) => Promise<string>

/** Records the pages that a request touches. */
export async function record(
  scene: Scene,
  request: Request,
): Promise<{ trace: Trace; response: string }> {
  const socketPath = scene.socketPath()
  const { memoryFile } = scene
  const handler = await serve({ socketPath, snapshot: { memoryFile }, record: true })
  return whileServed(handler, async () => {
    const response = await request({ backend_type: 'Uffd', backend_path: socketPath })
    return { trace: handler.stopRecording(), response }
  })
}

/** Measures a request in the VMM with this pid. */
export async function measure(
  scene: Scene,
  arm: Arm,
  pid: number,
  request: Request,
  digest: () => Promise<string> = async () => '',
): Promise<Sample> {
  const { memoryFile, workingSet } = scene
  if (arm === 'kernel-file') {
    const before = await kernelFaultsOf(pid)
    const start = performance.now()
    const response = await request({ backend_type: 'File', backend_path: memoryFile })
    const responseMs = performance.now() - start
    const faults = (await kernelFaultsOf(pid)) - before
    const noHandler = { lateFaults: 0, residualFaults: 0 }
    return { ...noHandler, responseMs, faults, response, digest: await digest() }
  }
  const socketPath = scene.socketPath()
  const prefetching = {
    workingSet,
    onBadWorkingSet: 'fail',
    onStaleWorkingSet: 'warn',
  } as const
  const start = performance.now()
  const handler = await serve({
    socketPath,
    snapshot: { memoryFile },
    ...(arm === 'working-set' && prefetching),
  })
  return whileServed(handler, async () => {
    const response = await request({ backend_type: 'Uffd', backend_path: socketPath })
    const responseMs = performance.now() - start
    const { faults, lateFaults, residualFaults } = handler.stats()
    await handler.prefetched
    return { responseMs, faults, lateFaults, residualFaults, response, digest: await digest() }
  })
}

/** Number of page faults, of all kinds, that the kernel has counted for a process. */
async function kernelFaultsOf(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8')
  // After the name, which may contain spaces, state is the third field, minflt the 10th, majflt the
  // 12th.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return Number(fields[7]) + Number(fields[9])
}

/** Runs `body` with a VMM that is started in advance, as in a pool. */
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

/**
 * Runs `body` and ends the session. A failure of the session takes precedence over one of `body`.
 */
async function whileServed<T>(handler: FaultHandler, body: () => Promise<T>): Promise<T> {
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

/** Sets the state of the page cache, or throws. */
export async function setCacheOrFail(
  guest: GuestProcess,
  cache: Cache,
  files: readonly string[],
): Promise<void> {
  const [file] = await setCache(guest, cache, files)
  if (file === undefined) return
  throw cache === 'cold'
    ? new CliError(
        'ERR_DEMO_FAILED',
        `${file} could not be evicted from the page cache, so no cold restore can be measured`,
        'Does another process use it? Try again, or choose another folder with --keep.',
      )
    : new CliError(
        'ERR_DEMO_FAILED',
        `${file} does not stay in the page cache, so no warm restore can be measured`,
        'This machine is short of memory: try a smaller --memory-size.',
      )
}
