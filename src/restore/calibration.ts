import { access, constants, open, readFile } from 'node:fs/promises'
import { homedir, release } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { isFailure } from '../binding/failure.js'
import { ReapTraceError } from '../errors.js'
import { describeCall, isReplaceable, makeFolder, replaceFile, writeWhole } from '../files.js'
import { checkOptions, type OptionRule, rules } from '../options.js'

/** Kind of vCPUs: those of KVM, or threads of the VMM (QEMU's TCG). */
export type Vcpus = 'kvm' | 'threads'

/** Cost of a page on this host, from the restore request until the guest has touched it. */
export interface PageCosts {
  /** Microseconds per page if the VMM maps the memory file, all of it in the page cache. */
  readonly mappedUs: number
  /** Microseconds per page if a fault handler installs it. */
  readonly installedUs: number
}

/** Costs for one kind of vCPUs. */
export interface GuestCalibration {
  /** Costs for a guest that only reads. */
  readonly reads: PageCosts
  /** Costs for a guest that writes to two of five pages, which a mapping must copy. */
  readonly writes: PageCosts
}

/** Result of `calibrateHost()`. */
export interface HostCalibration {
  /** Time of the calibration, as ISO 8601 in UTC. */
  readonly calibratedAt: string
  readonly kernel: string
  readonly cpu: string
  /** Costs by kind of vCPUs, without the kinds that cannot run on this host. */
  readonly guests: Readonly<Partial<Record<Vcpus, GuestCalibration>>>
}

/** Number and model of the processors. */
async function cpuName(): Promise<string> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '')
  const [, model = 'unknown'] = /^(?:model name|CPU part)\s*:\s*(.*)$/m.exec(text) ?? []
  return `${text.match(/^processor\s*:/gm)?.length ?? 0} × ${model.trim()}`
}

/** Path of the calibration: `REAP_TRACE_CALIBRATION`, or a file in the user's cache folder. */
export function calibrationPath(): string {
  const named = process.env.REAP_TRACE_CALIBRATION
  if (named) return resolve(named)
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'reap-trace/host.json')
}

const isCost = (value: unknown): value is number =>
  typeof value === 'number' && Number.isFinite(value) && value > 0
const areCosts = (costs: PageCosts | undefined): boolean =>
  isCost(costs?.mappedUs) && isCost(costs?.installedUs)

const isWhole = ({ guests }: HostCalibration): boolean =>
  Object.values(guests).every(({ reads, writes }) => areCosts(reads) && areCosts(writes))

let cpu: Promise<string> | undefined

/** Rule of the option `calibration`. */
export const calibrationRule: OptionRule = {
  expected: 'the result of hostCalibration() or calibrateHost()',
  accepts: (value) => {
    try {
      return isWhole(value as HostCalibration)
    } catch {
      return false
    }
  },
}

/** Options of {@link hostCalibration}. */
export interface HostCalibrationOptions {
  /**
   * Whether to use a file that another user than this one and root may have written.
   * @default false
   */
  readonly trust?: boolean | undefined
}

/**
 * Returns the calibration of this host. `undefined` if there is none, or if the kernel or the
 * processors have changed.
 *
 * @throws TypeError for invalid options.
 * @throws ReapTraceError `ERR_UNTRUSTED_FILE` if another user may write to the file or its folder.
 */
export async function hostCalibration(
  options: HostCalibrationOptions = {},
): Promise<HostCalibration | undefined> {
  checkOptions('hostCalibration()', options, { trust: rules.boolean })
  const path = calibrationPath()
  const bytes = options.trust
    ? await readRegularFile(path).catch(() => null)
    : await native().readPrivateFile(dirname(path), basename(path))
  if (!bytes) return undefined
  if (isFailure(bytes)) throw toError(bytes, { calibrationPath: path })
  try {
    const found = JSON.parse(Buffer.from(bytes).toString('utf8')) as HostCalibration
    cpu ??= cpuName()
    const isThisHost = found.kernel === release() && found.cpu === (await cpu)
    return isThisHost && isWhole(found) ? found : undefined
  } catch {
    return undefined
  }
}

/** Content of the file, or null for anything else that has its path. */
async function readRegularFile(path: string): Promise<Buffer | null> {
  // Without O_NONBLOCK, opening a named pipe would wait for a writer.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    return (await file.stat()).isFile() ? await file.readFile() : null
  } finally {
    await file.close()
  }
}

/** Fails early if {@link saveCalibration} would fail after the measurement. */
export async function prepareToSave(): Promise<void> {
  const folder = dirname(calibrationPath())
  try {
    await makeFolder(folder).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST') throw error
    })
    await access(`${folder}/.`, constants.W_OK | constants.X_OK)
    if (!(await isReplaceable(calibrationPath()))) throw new Error('it is not a regular file')
  } catch (cause) {
    throw notSaved(cause)
  }
}

export async function saveCalibration(guests: HostCalibration['guests']): Promise<HostCalibration> {
  const calibration = {
    calibratedAt: new Date().toISOString(),
    kernel: release(),
    cpu: await cpuName(),
    guests,
  }
  const bytes = Buffer.from(`${JSON.stringify(calibration, undefined, 2)}\n`)
  await replaceFile('calibration file', calibrationPath(), (file) =>
    writeWhole(file, bytes, 0),
  ).catch((error) => {
    throw notSaved(error instanceof ReapTraceError ? (error.cause ?? error) : error)
  })
  return calibration
}

function notSaved(cause: unknown): ReapTraceError {
  const path = calibrationPath()
  const failed = cause as NodeJS.ErrnoException
  const { errno, syscall } = failed
  const why = syscall === undefined ? failed.message : describeCall(failed, 'write').cause
  return new ReapTraceError(
    'ERR_CALIBRATION',
    `the calibration cannot be saved in ${path}: ${why}`,
    {
      path,
      errno,
      syscall,
      hint: 'Set REAP_TRACE_CALIBRATION to the path of a writable file.',
      cause,
    },
  )
}
