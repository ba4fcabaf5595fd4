import type { Residency } from '../working-set/open.js'
import type { GuestCalibration, HostCalibration, Vcpus } from './calibration.js'

/** The two ways in which a snapshot's memory can reach its guest. */
export type Backend = 'uffd' | 'page-cache'

/** All that the choice of a backend depends on. */
export interface Evidence {
  /** The backend that the caller named. */
  readonly named: Backend | undefined
  readonly record: boolean
  /** Bytes in a page of the guest, as far as anybody said. */
  readonly pageSize: number | undefined
  /** `unwritten`: it is in no file, so that it has places but no bytes. */
  readonly workingSet: 'file' | 'unwritten' | 'refused' | 'none'
  /** Of a working set in a file. */
  readonly residency: Residency | undefined
  /** Share of the recorded pages that the guest changed; `undefined` where nobody looked. */
  readonly writtenShare: number | undefined
  readonly vcpus: Vcpus
  readonly calibration: HostCalibration | undefined
}

/** A backend, and why: a sentence without a full stop. */
export interface Choice {
  readonly backend: Backend
  readonly reason: string
}

/** Of the pages of a set: with more missing, reading them from all over the memory file is dearer. */
const MAX_MISSING_SHARE = 0.05
/** A guest with fewer writes than this is one that reads. */
const MIN_WRITTEN_SHARE = 0.05
/** A handler must be clearly cheaper: the page cache needs none, and is shared by VMs. */
const MARGIN = 0.9

const without = 'the kernel serves faults faster than a handler'
const reasons = {
  none: `without a working set ${without}`,
  refused: `the working set cannot be used, and without one ${without}`,
  unwritten: 'a working set that is in no file can be brought into the page cache at once',
} as const

/**
 * Chooses by what must be, then by what has to be read from a disk, then by what a page costs on this
 * host. The one place for whatever else may speak for a backend.
 */
export function chooseBackend(evidence: Evidence): Choice {
  const { named, record, pageSize, workingSet, residency } = evidence
  if (named) return { backend: named, reason: 'it was asked for' }
  if (record) {
    return { backend: 'uffd', reason: 'a fault handler records each page as it is touched' }
  }
  if (pageSize === 2 * 2 ** 20) {
    return { backend: 'uffd', reason: 'only a fault handler can restore a guest with 2 MiB pages' }
  }
  if (workingSet !== 'file' || !residency) {
    return { backend: 'page-cache', reason: reasons[workingSet === 'file' ? 'none' : workingSet] }
  }
  const { pageCount: pages, missingPageCount: missingPages } = residency
  const percent = pages === 0 ? 100 : Math.round((100 * (pages - missingPages)) / pages)
  const cached = `${percent} % of ${(pages / 256).toFixed(pages < 2560 ? 1 : 0)} MiB of working set in the page cache`
  if (missingPages > MAX_MISSING_SHARE * pages) {
    return { backend: 'uffd', reason: `${cached}: a fault handler reads the rest faster` }
  }
  const { backend, reason } = cheaperPage(evidence)
  return { backend, reason: `${cached}; ${reason}` }
}

/** With everything in the page cache: is a mapped page dearer than an installed one? */
function cheaperPage({ writtenShare, vcpus, calibration }: Evidence): Choice {
  const guest: GuestCalibration | undefined = calibration?.guests[vcpus]
  if (!guest) {
    const reason = calibration
      ? `no guest of ${vcpus === 'kvm' ? 'KVM' : 'threads'} could be measured on this host`
      : 'this host is not calibrated (calibrateHost())'
    return { backend: 'page-cache', reason }
  }
  const reads = writtenShare !== undefined && writtenShare < MIN_WRITTEN_SHARE
  const { mappedUs, installedUs } = reads ? guest.reads : guest.writes
  const figures = `for a guest that ${reads ? 'only reads' : 'writes'}, a mapped page takes ${mappedUs.toFixed(1)} us on this host, an installed one ${installedUs.toFixed(1)} us`
  return { backend: installedUs < MARGIN * mappedUs ? 'uffd' : 'page-cache', reason: figures }
}
