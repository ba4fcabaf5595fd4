import { access, constants, mkdir, readFile } from 'node:fs/promises'
import { homedir, release } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { native } from '../binding/addon.js'
import { ReapTraceError } from '../errors.js'
import { replaceFile, writeWhole } from '../files.js'

/** What touches the guest's memory: vCPUs of KVM, or threads of the VMM (QEMU's TCG). */
export type Vcpus = 'kvm' | 'threads'

/** What a page takes on this host, from a restore request until the guest has touched it, in microseconds. */
export interface PageCosts {
  /** The VMM maps the memory file, all of it in the page cache. */
  readonly mappedUs: number
  /** A fault handler installs the page. */
  readonly installedUs: number
}

/** The costs for one kind of guest. */
export interface GuestCalibration {
  /** It only reads. */
  readonly reads: PageCosts
  /** It writes to two pages in five, of which a mapping makes a private copy. */
  readonly writes: PageCosts
}

/** What `calibrateHost()` has measured on a host. */
export interface HostCalibration {
  /** ISO 8601, in UTC. */
  readonly calibratedAt: string
  readonly kernel: string
  readonly cpu: string
  /** Without the kinds that cannot run here. */
  readonly guests: Readonly<Partial<Record<Vcpus, GuestCalibration>>>
}

/** The processors, as costs depend on them. */
async function cpuName(): Promise<string> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '')
  const [, model = 'unknown'] = /^(?:model name|CPU part)\s*:\s*(.*)$/m.exec(text) ?? []
  return `${text.match(/^processor\s*:/gm)?.length ?? 0} × ${model.trim()}`
}

/** Where the calibration is kept: `REAP_TRACE_CALIBRATION`, or a file in the user's cache folder. */
export function calibrationPath(): string {
  const named = process.env.REAP_TRACE_CALIBRATION
  if (named) return resolve(named)
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'reap-trace/host.json')
}

const isCost = (value: unknown): value is number =>
  typeof value === 'number' && Number.isFinite(value) && value > 0
const areCosts = (costs: PageCosts | undefined): boolean =>
  isCost(costs?.mappedUs) && isCost(costs?.installedUs)

let cpu: Promise<string> | undefined

/**
 * The calibration of this host; `undefined` where there is none, or one of another kernel or other
 * processors, or in a file that somebody else may have written.
 */
export async function hostCalibration(): Promise<HostCalibration | undefined> {
  const path = calibrationPath()
  const bytes = await native().readPrivateFile(dirname(path), basename(path))
  if (!bytes) return undefined
  try {
    const found = JSON.parse(Buffer.from(bytes).toString('utf8')) as HostCalibration
    cpu ??= cpuName()
    const isOurs = found.kernel === release() && found.cpu === (await cpu)
    const guests = Object.values(found.guests)
    const isWhole = guests.every(({ reads, writes }) => areCosts(reads) && areCosts(writes))
    return isOurs && isWhole ? found : undefined
  } catch {
    return undefined
  }
}

/** Fails where {@link keepCalibration} would: before anything is measured. */
export async function prepareToKeep(): Promise<void> {
  const folder = dirname(calibrationPath())
  try {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    await access(folder, constants.W_OK | constants.X_OK)
  } catch (cause) {
    throw notKept(cause)
  }
}

export async function keepCalibration(guests: HostCalibration['guests']): Promise<HostCalibration> {
  const calibration = {
    calibratedAt: new Date().toISOString(),
    kernel: release(),
    cpu: await cpuName(),
    guests,
  }
  const bytes = Buffer.from(`${JSON.stringify(calibration, undefined, 2)}\n`)
  await replaceFile('calibration', calibrationPath(), (file) => writeWhole(file, bytes, 0)).catch(
    (error) => {
      throw notKept(error instanceof ReapTraceError ? error.cause : error)
    },
  )
  return calibration
}

function notKept(cause: unknown): ReapTraceError {
  const path = calibrationPath()
  const { message, errno, syscall } = cause as NodeJS.ErrnoException
  return new ReapTraceError(
    'ERR_CALIBRATION',
    `the calibration cannot be kept in ${path}: ${message}`,
    {
      path,
      errno,
      syscall,
      hint: 'Name a file that may be written to in REAP_TRACE_CALIBRATION.',
      cause,
    },
  )
}
