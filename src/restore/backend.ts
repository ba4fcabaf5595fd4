import type { Residency } from '../working-set/open.js'
import type { GuestCalibration, HostCalibration, Vcpus } from './calibration.js'

/** How guest memory is provided: by a fault handler, or by the kernel from a mapped memory file. */
export type Backend = 'uffd' | 'page-cache'

/** Weighted mean of the times of restores, in milliseconds; `weight` is 0 before the first one. */
export interface MeanTime {
  readonly ms: number
  readonly weight: number
}

/** State of the page cache: `warm` if at most a quarter of the working set is missing, else `cold`. */
export type Warmth = 'warm' | 'cold'

/** Mean response times of a snapshot's restores on this host, by backend and page cache. */
export type ResponseTimes = Readonly<Record<Backend, Readonly<Record<Warmth, MeanTime>>>>

/** Inputs of the choice of a backend. */
export interface ChoiceInputs {
  /** Backend named by the caller. */
  readonly named: Backend | undefined
  readonly record: boolean
  /** Page size of the guest in bytes, if known. */
  readonly pageSize: number | undefined
  /** Whether VMs can share the memory file's page cache. */
  readonly isMappable: boolean
  /** `unwritten`: a set without a file, and so without bytes. */
  readonly workingSet: 'file' | 'unwritten' | 'refused' | 'none'
  /** Residency of a working set from a file. */
  readonly residency: Residency | undefined
  /** Share of the recorded pages that the guest modified; `undefined` if unknown. */
  readonly writtenShare: number | undefined
  readonly vcpus: Vcpus
  readonly calibration: HostCalibration | 'untrusted' | undefined
  readonly responses?: ResponseTimes | undefined
}

/** A backend and the reason for it, a sentence without a full stop. */
export interface Choice {
  readonly backend: Backend
  readonly reason: string
}

/**
 * Maximum share of missing pages for the page cache: reading them from all over the memory file is
 * slow.
 */
const MAX_MISSING_SHARE = 0.05
/** Minimum share of written pages of a guest that counts as writing. */
const MIN_WRITTEN_SHARE = 0.05
/** A handler must be clearly faster: the page cache needs no process and is shared by VMs. */
const MARGIN = 0.9
const MAX_WARM_MISSING_SHARE = 0.25
/** Minimum weight of a mean that counts. */
const MIN_WEIGHT = 3
/** A smaller difference of two means may be chance. */
const EXPERIENCE_MARGIN = 0.95

const names = { uffd: 'a fault handler', 'page-cache': 'the page cache' } as const
const without = 'the kernel serves faults faster than a handler'
const reasons = {
  none: `without a working set ${without}`,
  refused: `the working set cannot be used, and without one ${without}`,
  unwritten: 'a working set without a file can be prefetched into the page cache at once',
} as const

/** State of the page cache for a working set with this residency. */
export const warmthOf = ({ missingPageCount, pageCount }: Residency): Warmth =>
  missingPageCount <= MAX_WARM_MISSING_SHARE * pageCount ? 'warm' : 'cold'

/**
 * Chooses a backend by requirements, then by what earlier restores took, then by the share of pages
 * missing from the page cache, then by the cost of a page on this host.
 */
export function chooseBackend(inputs: ChoiceInputs): Choice {
  const required = requiredChoice(inputs)
  if (required) return required
  const { pageCount, missingPageCount } = inputs.residency!
  const percent = pageCount === 0 ? 100 : Math.round(100 - (100 * missingPageCount) / pageCount)
  const mib = (pageCount / 256).toFixed(pageCount < 2560 ? 1 : 0)
  const cached = `${percent} % of ${mib} MiB of working set in the page cache`
  const faster = fasterSoFar(inputs)
  if (!faster && missingPageCount > MAX_MISSING_SHARE * pageCount) {
    return { backend: 'uffd', reason: `${cached}: a fault handler reads the rest faster` }
  }
  const { backend, reason } = faster ?? cheaperPage(inputs)
  return { backend, reason: `${cached}; ${reason}` }
}

/** Choice that no measurement changes; `undefined` only for a set with a residency. */
function requiredChoice(inputs: ChoiceInputs): Choice | undefined {
  const { named, record, pageSize, workingSet, residency } = inputs
  if (named) return { backend: named, reason: 'it was asked for' }
  if (record) {
    return { backend: 'uffd', reason: 'a fault handler records each page as it is touched' }
  }
  if (pageSize === 2 * 2 ** 20) {
    return { backend: 'uffd', reason: 'only a fault handler can restore a guest with 2 MiB pages' }
  }
  if (!inputs.isMappable) {
    const reason = 'the file system of the memory file has no mappings that share its page cache'
    return { backend: 'uffd', reason }
  }
  if (workingSet === 'file' && residency) return undefined
  return { backend: 'page-cache', reason: reasons[workingSet === 'file' ? 'none' : workingSet] }
}

/**
 * The backend that is not chosen, to learn what a restore takes with it; `undefined` where it is
 * not possible, or has no working set to prefetch.
 */
export function trialOf(inputs: ChoiceInputs): Choice | undefined {
  if (requiredChoice(inputs)) return undefined
  const { backend, reason } = chooseBackend(inputs)
  const other = backend === 'uffd' ? 'page-cache' : 'uffd'
  return {
    backend: other,
    reason: `a trial of ${names[other]}, although ${names[backend]} would be chosen: ${reason}`,
  }
}

/** Choice for no named backend; `undefined` without measurements that support it. */
export function measuredChoice(inputs: ChoiceInputs): Choice | undefined {
  const { residency, calibration, vcpus } = inputs
  const choice = chooseBackend({ ...inputs, named: undefined })
  const isCold = residency && residency.missingPageCount > MAX_MISSING_SHARE * residency.pageCount
  const isCalibrated = typeof calibration === 'object' && calibration.guests[vcpus] !== undefined
  const isMeasured = isCold || isCalibrated || fasterSoFar(inputs) !== undefined
  return residency && isMeasured ? choice : undefined
}

/** Chooses by what earlier restores took; `undefined` without a clear difference. */
function fasterSoFar({ responses, residency }: ChoiceInputs): Choice | undefined {
  if (!responses || !residency) return undefined
  const warmth = warmthOf(residency)
  const { uffd, 'page-cache': pageCache } = responses
  const [handled, mapped] = [uffd[warmth], pageCache[warmth]]
  if (Math.min(handled.weight, mapped.weight) < MIN_WEIGHT) return undefined
  const [faster, slower] = handled.ms < mapped.ms ? [handled, mapped] : [mapped, handled]
  if (faster.ms > EXPERIENCE_MARGIN * slower.ms) return undefined
  const print = ({ ms }: MeanTime) => `${ms.toFixed(ms < 10 ? 1 : 0)} ms`
  return {
    backend: faster === handled ? 'uffd' : 'page-cache',
    reason: `with a ${warmth} page cache, restores of this snapshot took ${print(handled)} by a fault handler and ${print(mapped)} from the page cache on this host`,
  }
}

/** Chooses by the cost of a page when the working set is in the page cache. */
function cheaperPage({ writtenShare, vcpus, calibration }: ChoiceInputs): Choice {
  if (calibration === 'untrusted') {
    const reason = 'other users may write to the calibration of this host (hostCalibration())'
    return { backend: 'page-cache', reason }
  }
  const guest: GuestCalibration | undefined = calibration?.guests[vcpus]
  if (!guest) {
    const reason = calibration
      ? `no guest of ${vcpus === 'kvm' ? 'KVM' : 'threads'} could be measured on this host`
      : 'this host is not calibrated (reap-trace advise, calibrateHost())'
    return { backend: 'page-cache', reason }
  }
  const reads = writtenShare !== undefined && writtenShare < MIN_WRITTEN_SHARE
  const { mappedUs, installedUs } = reads ? guest.reads : guest.writes
  const figures = `for a guest that ${reads ? 'only reads' : 'writes'}, a mapped page takes ${mappedUs.toFixed(1)} us on this host, an installed one ${installedUs.toFixed(1)} us`
  return { backend: installedUs < MARGIN * mappedUs ? 'uffd' : 'page-cache', reason: figures }
}
