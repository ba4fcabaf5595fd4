import { PAGE } from '../page.js'
import type { FaultStats } from '../uffd/fault-handler.js'
import type { FaultClass } from '../uffd/timing.js'
import { formatBytes, formatCount, formatMs, formatPlural } from './format.js'
import type { RestoreRecord, Verdict } from './record.js'

/** A restore to judge. */
type Restore = Omit<RestoreRecord, 'version' | 'date' | 'verdict'>

/**
 * Thresholds, measured with restores that were slow on purpose (docs/observability.md). Shares are
 * of `Parts.all` unless the comment names something else.
 */
const thresholds = {
  /** Minimum share before the handshake. */
  vmm: 0.5,
  /** Minimum share of waits for pages outside the set, or without a set. */
  faults: 0.15,
  /** Minimum share of waits for pages that the prefetch had yet to install. */
  late: 0.15,
  /** Minimum share of the prefetch in which it waited for the disk. */
  disk: 0.5,
  /** Minimum ratio of the prefetch to the CPU time of its installs, and share of the difference. */
  stretch: 2.5,
  cores: 0.15,
  /** Share of the set below which its installed pages show that it is too large. */
  needed: 0.75,
  /** Minimum share of a prefetch into the page cache. */
  pageCache: 0.25,
  /** Maximum share of the set that a restore with a warm page cache reads from the disk. */
  usuallyRead: 0.1,
} as const

/** A prefetch in an earlier restore. */
export interface EarlierRestore {
  /** Number of pages prefetched, in 4 KiB. */
  readonly prefetchedPageCount?: number | undefined
  /** Number of bytes that it read from the disk. */
  readonly diskBytes?: number | undefined
}

/** Parts of a restore, in milliseconds. */
interface Parts {
  /** Time from the start of the command, or without one from the connection, to the end. */
  readonly all: number
  /** Part of `all` before the handshake. */
  readonly load: number
  /** Part of `all` in which the guest waited, by class of fault. */
  readonly waits: Readonly<Record<FaultClass, number>>
  /** Part of the prefetch after the handshake; 0 without a set. */
  readonly prefetch: number
  /** Figures at the end. */
  readonly stats: FaultStats
}

/**
 * Names the main cause of a restore's duration, with a remedy. Only the time until the
 * application's mark counts; without a mark, until the end of the command, or of the VM.
 *
 * @param earlier restores of the same snapshot, which show whether its page cache is usually warm,
 * such as the history of a store.
 * @returns `undefined` if no VM was served, or if a restore from the page cache had neither a
 * command nor a mark.
 */
export function judgeRestore(
  restore: Omit<RestoreRecord, 'version' | 'date' | 'verdict'>,
  earlier: readonly EarlierRestore[] = [],
): Verdict | undefined {
  if (restore.backend === 'page-cache') return judgePageCache(restore)
  const parts = partsOf(restore)
  if (!parts) return undefined
  return (
    judgeFaults(restore, parts) ??
    judgeSize(restore, parts) ??
    judgeDisk(restore, parts, earlier) ??
    judgeCores(parts) ??
    judgeLoad(parts) ??
    judgeInstalls(restore, parts) ??
    judgeApplication(
      restore,
      `the guest waited for pages for ${formatMs(waitOf(parts))} of ${formatMs(parts.all)}`,
    )
  )
}

function partsOf({ times, stats: atEnd, statsAtReady, workingSet }: Restore): Parts | undefined {
  const { commandStarted, accepted, connected, prefetched } = times
  const end = endOf(times)
  const stats = statsAtReady ?? atEnd
  if (accepted === undefined || connected === undefined || end === undefined || !stats) return
  // Without a command, the user decides how long the socket waits for the connection.
  const start = commandStarted ?? accepted
  const { waits } = stats
  // The figures are those of the receipt of the mark, which may be dated back.
  const stalledMs = Math.min(stats.stalledMs, Math.max(0, end - connected))
  const sum = waits['on-demand'].totalUs + waits.late.totalUs + waits.residual.totalUs
  const share = (name: FaultClass) => (sum === 0 ? 0 : (stalledMs * waits[name].totalUs) / sum)
  return {
    all: Math.max(end, connected) - start,
    load: connected - start,
    waits: { 'on-demand': share('on-demand'), late: share('late'), residual: share('residual') },
    prefetch: workingSet ? Math.max(0, Math.min(prefetched ?? end, end) - connected) : 0,
    stats,
  }
}

const endOf = ({ ready, commandEnded, closed }: Restore['times']) => ready ?? commandEnded ?? closed

/** Faults on pages outside the set, or without a set. */
function judgeFaults({ workingSet, prefetch }: Restore, parts: Parts): Verdict | undefined {
  const { all, waits, stats } = parts
  const isResidual = waits.residual > waits['on-demand']
  const wait = isResidual ? waits.residual : waits['on-demand']
  if (wait < thresholds.faults * all) return undefined
  const waited = `the guest waited ${formatMs(wait)} of ${formatMs(all)} for`
  if (!isResidual) {
    return {
      kind: 'set-missing',
      sentence: `Nothing was prefetched: ${waited} ${formatPlural(stats.faults, 'page fault')}.`,
      remedy: 'Record a working set ("reap-trace record"), and restore with it.',
    }
  }
  if (prefetch?.complete === false) {
    return {
      kind: 'prefetch-failed',
      sentence: `The prefetch broke off: ${waited} ${formatPlural(stats.residualFaults, 'fault')}.`,
      remedy: 'See the warning of this restore for the cause.',
    }
  }
  const set = workingSet ? `its ${formatPlural(workingSet.pageCount, 'page')}` : 'it'
  return {
    kind: 'set-does-not-fit',
    sentence: `The working set does not fit: ${waited} ${formatPlural(stats.residualFaults, 'fault')} outside ${set}.`,
    remedy:
      'Record the slow request, or merge recordings of several requests ("reap-trace merge").',
  }
}

/** Pages are installed in first-touch order, so those that are still missing were not needed. */
function judgeSize(
  { workingSet, times, prefetch }: Restore,
  { stats }: Parts,
): Verdict | undefined {
  const pageCount = prefetch?.complete === false ? 0 : (workingSet?.pageCount ?? 0)
  if (pageCount === 0 || stats.prefetched >= thresholds.needed * pageCount) return undefined
  const end = times.ready === undefined ? 'at the end' : 'when the application was ready'
  return {
    kind: 'set-too-large',
    sentence: `The working set is too large: only ${formatCount(stats.prefetched)} of its ${formatPlural(pageCount, 'page')} were installed ${end}.`,
    remedy:
      'End the recording when the function has answered, or keep only the pages that several recordings have in common ("reap-trace merge").',
  }
}

/** Time before the handshake. */
function judgeLoad({ all, load }: Parts): Verdict | undefined {
  if (load < thresholds.vmm * all) return undefined
  return {
    kind: 'vmm',
    sentence: `The VMM connected late: its handshake ended after ${formatMs(load)} of ${formatMs(all)}.`,
    remedy: 'Look at the start of the VMM, its state file, and what the command does before.',
  }
}

/** Late faults during a prefetch that waited for the disk. */
function judgeDisk(
  restore: Restore,
  parts: Parts,
  earlier: readonly EarlierRestore[],
): Verdict | undefined {
  const { all, waits, stats } = parts
  const { late } = waits
  const { diskMs, diskBytes } = stats.prefetch
  if (late < thresholds.late * all || !isFromDisk(parts)) return undefined
  const read = `${formatBytes(diskBytes)} took ${formatMs(diskMs)} (${formatBytes((1000 * diskBytes) / diskMs)}/s); the guest waited ${formatMs(late)} of ${formatMs(all)} for late pages`
  return isUsuallyCached(earlier)
    ? {
        kind: 'cold-cache',
        sentence: `The page cache was cold, unlike in most earlier restores: ${read}.`,
        remedy: 'Find out what evicts the snapshot: other files, or the memory limit of a cgroup.',
      }
    : {
        kind: 'disk',
        sentence: `The disk was too slow for the working set: ${read}.`,
        remedy: remedyForDisk(restore),
      }
}

/** A prefetch that waited for cores rather than for the disk. */
function judgeCores(parts: Parts): Verdict | undefined {
  if (isFromDisk(parts)) return undefined
  const { all, prefetch, stats } = parts
  const { installCpuMs } = stats.prefetch
  if (prefetch < thresholds.stretch * installCpuMs) return undefined
  if (prefetch - installCpuMs < thresholds.cores * all) return undefined
  return {
    kind: 'cores',
    sentence: `The cores were busy with other work: the prefetch took ${formatMs(prefetch)} of ${formatMs(all)}, its installs only ${formatMs(installCpuMs)} of CPU time.`,
    remedy: 'Keep cores free for restores, or restore fewer VMs at once.',
  }
}

/** Late faults without one of these causes. */
function judgeInstalls(restore: Restore, { all, waits }: Parts): Verdict | undefined {
  if (waits.late < thresholds.late * all) return undefined
  return (
    judgeBackend(restore) ?? {
      kind: 'limit',
      sentence: `This host installs pages no faster: the guest waited ${formatMs(waits.late)} of ${formatMs(all)} for late pages.`,
      remedy: 'Use a smaller working set, or a guest with 2 MiB pages.',
    }
  )
}

/** Whether the prefetch waited mostly for the disk. */
function isFromDisk({ prefetch, stats: { prefetch: work } }: Parts): boolean {
  return work.diskMs > 0 && work.diskMs >= thresholds.disk * prefetch
}

function remedyForDisk({ prefetch, workingSet }: Restore): string {
  if (prefetch && 'source' in prefetch && prefetch.source === 'memory-file') {
    return 'Prove the set ("reap-trace verify"): its bytes then come from its file, in large reads, instead of from the memory file.'
  }
  const set = workingSet?.path ?? 'the working set'
  return `Keep ${set} on a faster disk, or in the page cache.`
}

function isUsuallyCached(earlier: readonly EarlierRestore[]): boolean {
  const prefetches = earlier.filter(({ prefetchedPageCount = 0 }) => prefetchedPageCount > 0)
  const warm = prefetches.filter(
    ({ prefetchedPageCount = 0, diskBytes = 0 }) =>
      diskBytes <= thresholds.usuallyRead * prefetchedPageCount * PAGE,
  )
  return warm.length > prefetches.length / 2
}

/** The other backend, if this host's measurements speak for it. */
function judgeBackend({ backend, automatic }: Restore): Verdict | undefined {
  if (!automatic || automatic.backend === backend) return undefined
  return {
    kind: 'backend',
    sentence: `The backend ${automatic.backend} is faster here: ${automatic.reason}.`,
    remedy: 'Restore with the backend "auto".',
  }
}

function judgePageCache(restore: Restore): Verdict | undefined {
  const { times, prefetch } = restore
  const end = endOf(times)
  if (end === undefined || !prefetch || !('residentPageCount' in prefetch)) return undefined
  const start = times.commandStarted ?? (times.ready && times.started)
  if (start === undefined) return undefined
  const all = end - start
  const { completedMs, bytes } = prefetch
  if (completedMs < thresholds.pageCache * all) {
    return judgeApplication(
      restore,
      `the prefetch took ${formatMs(completedMs)} of ${formatMs(all)} (the kernel does not report how long its faults wait)`,
    )
  }
  return (
    judgeBackend(restore) ?? {
      kind: 'disk',
      sentence: `The working set was not in the page cache: the disk took ${formatMs(completedMs)} of ${formatMs(all)} for ${formatBytes(bytes)}.`,
      remedy:
        'Restore with the backend "uffd", which reads more at once, or keep the files cached.',
    }
  )
}

function judgeApplication({ times }: Restore, figures: string): Verdict {
  return {
    kind: 'application',
    sentence: `Nothing is wrong with the restore: ${figures}; the VMM and the application took the rest.`,
    ...(times.ready === undefined && {
      remedy:
        'Mark the time at which the application is ready ("reap-trace ready", or ready()), so that later work does not count.',
    }),
  }
}

const waitOf = ({ waits }: Parts) => waits['on-demand'] + waits.late + waits.residual
