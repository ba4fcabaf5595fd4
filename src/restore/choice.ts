import { PAGE } from '../page.js'
import type { Survey } from '../page-cache/residency.js'
import type {
  DiskCosts,
  GuestCosts,
  HostCosts,
  HostModel,
  TouchCosts,
  Vcpus,
} from './host-model.js'

/** The two ways in which a snapshot's memory can be brought to its guest. */
export type Backend = 'uffd' | 'page-cache'

/** What one way would take. */
export interface Estimate {
  /** From the restore request until the guest has its working set, in milliseconds. */
  readonly ms: number
  /** The part that reads from a disk take. */
  readonly readMs: number
}

/**
 * What each way would take on this host, `undefined` where this was not measured.
 *
 * Reading and touching overlap, so that the longer of the two counts, and a part of the other. A handler
 * reads the set's index before, the first time in a process.
 */
export function estimate(
  survey: Survey,
  model: HostModel,
  vcpus: Vcpus,
  isIndexKnown = true,
): Record<Backend, Estimate> | undefined {
  const { costs } = model
  const guest = guestCosts(costs, vcpus)
  const memoryDisk = model.diskCosts(survey.memoryDevice)
  const setDisk = model.diskCosts(survey.setDevice)
  if (!costs || !guest || !memoryDisk || !setDisk) return undefined
  const { pages, extents, windows, missingPages, missingExtents, missingBytes } = survey
  const touchMs = ({ fixedMs, pageUs, runUs }: TouchCosts, runs: number) =>
    fixedMs + (pages * pageUs + runs * runUs) / 1000
  const both = (a: number, b: number) => Math.max(a, b) + NOT_OVERLAPPED * Math.min(a, b)
  const installMs = touchMs(guest.installed, extents)
  const mappedMs = touchMs(mixed(guest.mapped, survey, costs.smallLookNs), windows)
  const setReadMs = missingBytes / setDisk.bytesPerMs
  const memoryReadMs = bringInMs(memoryDisk, missingPages, missingExtents)
  // Nothing overlaps with this: the handler comes after it.
  const indexMs = isIndexKnown ? 0 : (pages * costs.indexUs) / 1000
  return {
    uffd: { ms: both(installMs, setReadMs) + indexMs, readMs: setReadMs },
    'page-cache': { ms: both(mappedMs, memoryReadMs), readMs: memoryReadMs },
  }
}

/**
 * The costs of small pieces as far as the page cache has such, and those of large ones for the rest. What
 * is still to be read will lie in small ones.
 */
function mixed(
  { large, small }: GuestCosts['mapped'],
  { pages, missingPages, windows, shareAround, lookNs }: Survey,
  smallLookNs: number,
): TouchCosts {
  const there = pages > 0 ? 1 - missingPages / pages : 0
  const areSmall = lookNs === undefined ? 1 : Math.min(1, lookNs / smallLookNs)
  const share = 1 - there + there * areSmall
  const mix = (cost: keyof TouchCosts, of = share) => of * small[cost] + (1 - of) * large[cost]
  // A fault maps small pieces one by one, as many as there are: at the least those of the set.
  const own = windows > 0 ? pages / (windows * WINDOW_PAGES) : 0
  const around = Math.min(1, Math.max(shareAround, own))
  return { fixedMs: mix('fixedMs'), pageUs: mix('pageUs'), runUs: mix('runUs', share * around) }
}

/**
 * What it takes to bring runs of pages into the page cache: their bytes, and for each run what one page
 * takes above its bytes.
 */
export function bringInMs(
  { cachedBytesPerMs, extentUs }: DiskCosts,
  pages: number,
  extents: number,
): number {
  const pageMs = PAGE / cachedBytesPerMs
  return pages * pageMs + extents * Math.max(0, extentUs / 1000 - pageMs)
}

/**
 * The part of the shorter one that does not overlap: the kernel reads while the guest touches, and the
 * engine's readers while its workers install.
 */
const NOT_OVERLAPPED = 0.25
/** What one read fault maps of what is in the page cache: 64 KiB. */
export const WINDOW_PAGES = 16

/** KVM's costs where they were measured, or else those of threads. */
export const guestCosts = (costs: HostCosts | undefined, vcpus: Vcpus) =>
  costs?.guests[vcpus] ?? costs?.guests.threads

/** What the choice depends on besides the files. */
export interface Wishes {
  readonly forced: Backend | undefined
  readonly record: boolean
  /** `places` are of a set that is in no file, so that nothing can be installed in bulk. */
  readonly workingSet: 'file' | 'places' | 'refused' | 'none'
  /** Of the guest, where the caller says it, or 0. */
  readonly pageSize: number
}

/** A choice, and why: a sentence without a full stop. */
export interface Choice {
  readonly backend: Backend
  readonly reason: string
}

/** How much shorter a fault handler's estimate must be: the page cache needs none, and is shared. */
const MARGIN = 0.95

const ms = (value: number) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`
const percent = (part: number, whole: number) =>
  whole === 0 ? '0 %' : `${Math.round((100 * part) / whole)} %`

const WITHOUT = 'the kernel serves faults faster than a handler'
const because = {
  none: `without a working set ${WITHOUT}`,
  refused: `the working set cannot be used, and without one ${WITHOUT}`,
  places: 'a working set that is in no file can be brought into the page cache at once',
} as const

/** Chooses by what must be, then by the estimates; without those by what is in the page cache. */
export function choose(
  wishes: Wishes,
  survey: Survey,
  estimates: Record<Backend, Estimate> | undefined,
): Choice {
  if (wishes.forced) return { backend: wishes.forced, reason: 'it was asked for' }
  if (wishes.record) {
    return { backend: 'uffd', reason: 'a fault handler records each page as it is touched' }
  }
  if (Math.max(wishes.pageSize, survey.pageSize ?? 0) === 2 * 2 ** 20) {
    return { backend: 'uffd', reason: 'a guest with 2 MiB pages can be restored in no other way' }
  }
  if (wishes.workingSet !== 'file')
    return { backend: 'page-cache', reason: because[wishes.workingSet] }
  const { pages, missingPages } = survey
  const cached = `${percent(pages - missingPages, pages)} of ${(pages / 256).toFixed(pages < 2560 ? 1 : 0)} MiB of working set in the page cache`
  if (!estimates) {
    // Mapping a page that is there is cheap on every host, and reading it in is not.
    const backend = missingPages * 20 > pages ? 'uffd' : 'page-cache'
    return { backend, reason: `${cached}; this host was not measured (measureHost())` }
  }
  const { uffd, 'page-cache': cache } = estimates
  const backend = uffd.ms < MARGIN * cache.ms ? 'uffd' : 'page-cache'
  const [own, other] = backend === 'uffd' ? [uffd, cache] : [cache, uffd]
  const names = { uffd: 'a fault handler', 'page-cache': 'the kernel' } as const
  const way = names[backend]
  const rest = names[backend === 'uffd' ? 'page-cache' : 'uffd']
  const reading = (each: Estimate) =>
    each.readMs >= 0.05 ? `, ${ms(each.readMs)} of it reads` : ''
  return {
    backend,
    reason: `${cached}: ${way} is estimated at ${ms(own.ms)}${reading(own)}, ${rest} at ${ms(other.ms)}${reading(other)}`,
  }
}
