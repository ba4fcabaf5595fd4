import type { FaultStats } from '../uffd/fault-handler.js'
import type { FaultClass } from '../uffd/timing.js'
import type { RestoreRecord, Verdict } from './record.js'

/** What a verdict is made from. */
type Restore = Omit<RestoreRecord, 'version' | 'date' | 'verdict'>

/**
 * Thresholds, as measured with restores that were slow on purpose (docs/observability.md). Shares
 * are of the time from the start of the command, or from the VMM's connection, until the
 * application was ready.
 */
export const thresholds = {
  /** Share that the VMM needs before the handshake. */
  vmm: 0.5,
  /** Share in which the guest waited for pages outside the set, or without a set. */
  faults: 0.15,
  /** Share in which the guest waited for pages that the prefetch had yet to install. */
  late: 0.15,
  /** Share of the prefetch in which it waited for the disk. */
  disk: 0.5,
  /** Time of the prefetch over the CPU time of its installs, and share of the difference. */
  stretch: 4,
  cores: 0.15,
  /** Share of the set that was installed when the application was ready. */
  needed: 0.5,
  /** Share of the time that a prefetch into the page cache took. */
  pageCache: 0.25,
  /** Share of the set that earlier restores read from the disk, at most, if it is usually cached. */
  usuallyRead: 0.1,
} as const

/** Parts of a restore, in milliseconds. */
interface Parts {
  /** From the start until the application was ready. */
  readonly all: number
  /** Before the handshake. */
  readonly load: number
  readonly waits: Readonly<Record<FaultClass, number>>
  /** From the handshake until the prefetch or the wait for the application ended. */
  readonly prefetch: number
  readonly stats: FaultStats
}

/**
 * Names the cause of most of what a restore lost, with a remedy. Only what happened until the
 * application's mark counts, or until the command, or without one the VM, ended.
 *
 * @param earlier restores of the same snapshot: they show whether its page cache is usually cold.
 * @returns `undefined` if no VM was served, or a restore from the page cache had no command and no
 * mark.
 */
export function judgeRestore(
  restore: Omit<RestoreRecord, 'version' | 'date' | 'verdict'>,
  earlier: readonly Omit<RestoreRecord, 'version' | 'date' | 'verdict'>[] = [],
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
    application(
      restore,
      `the guest waited ${formatMs(waitOf(parts))} of ${formatMs(parts.all)} for pages`,
    )
  )
}

function partsOf({ times, stats: atEnd, statsAtReady, prefetch }: Restore): Parts | undefined {
  const { commandStarted, accepted, connected, prefetched } = times
  const end = endOf(times)
  const stats = statsAtReady ?? atEnd
  if (accepted === undefined || connected === undefined || end === undefined || !stats) return
  // Without a command, the time before the connection is the user's.
  const start = commandStarted ?? accepted
  const { waits, stalledMs } = stats
  const sum = waits['on-demand'].totalUs + waits.late.totalUs + waits.residual.totalUs
  const share = (name: FaultClass) => (sum === 0 ? 0 : (stalledMs * waits[name].totalUs) / sum)
  return {
    all: Math.max(end, connected) - start,
    load: connected - start,
    waits: { 'on-demand': share('on-demand'), late: share('late'), residual: share('residual') },
    prefetch: Math.max(0, Math.min(prefetch ? (prefetched ?? end) : end, end) - connected),
    stats,
  }
}

const endOf = ({ ready, commandEnded, closed }: Restore['times']) => ready ?? commandEnded ?? closed

/** Waits for pages that no prefetch was to install. */
function judgeFaults({ workingSet }: Restore, parts: Parts): Verdict | undefined {
  const { all, waits, stats } = parts
  const isResidual = waits.residual > waits['on-demand']
  const wait = isResidual ? waits.residual : waits['on-demand']
  if (wait < thresholds.faults * all) return undefined
  const waited = `the guest waited ${formatMs(wait)} of ${formatMs(all)} for`
  if (!isResidual) {
    return {
      kind: 'set-missing',
      sentence: `Nothing was prefetched: ${waited} ${formatPages(stats.faults)}.`,
      remedy: 'Record a working set ("reap-trace record"), and restore with it.',
    }
  }
  const has = workingSet ? `, which has ${formatPages(workingSet.pageCount)}` : ''
  return {
    kind: 'set-does-not-fit',
    sentence: `The working set does not fit: ${waited} ${formatPages(stats.residualFaults)} outside the set${has}.`,
    remedy:
      'Record it again with the request that is slow, or merge recordings of several requests ("reap-trace merge").',
  }
}

/** Pages are installed in the order of their first touch: the last ones were not needed. */
function judgeSize({ workingSet }: Restore, { stats }: Parts): Verdict | undefined {
  const pageCount = workingSet?.pageCount ?? 0
  if (pageCount === 0 || stats.prefetched >= thresholds.needed * pageCount) return undefined
  return {
    kind: 'set-too-large',
    sentence: `The working set is too large: ${formatCount(stats.prefetched)} of its ${formatPages(pageCount)} were installed when the application was ready.`,
    remedy:
      'End the recording when the function has answered ("reap-trace ready"), or keep only the pages that several recordings have in common ("reap-trace merge").',
  }
}

/** What the VMM needs before the handshake. */
function judgeLoad({ all, load }: Parts): Verdict | undefined {
  if (load < thresholds.vmm * all) return undefined
  return {
    kind: 'vmm',
    sentence: `The VMM took ${formatMs(load)} of ${formatMs(all)} until the guest could touch its memory.`,
    remedy:
      'Look at the start of the VMM, at its load of the state, and at what the command does before.',
  }
}

/** Faults on pages that the prefetch had yet to install, as their bytes came late. */
function judgeDisk(
  restore: Restore,
  { all, waits, prefetch, stats }: Parts,
  earlier: readonly Restore[],
): Verdict | undefined {
  const { late } = waits
  const { diskMs, diskBytes } = stats.prefetch
  if (late < thresholds.late * all || diskMs < thresholds.disk * prefetch) return undefined
  const read = `${formatMib(diskBytes)} came from the disk in ${formatMs(diskMs)} (${formatMib((1000 * diskBytes) / diskMs)}/s); the guest waited ${formatMs(late)} of ${formatMs(all)}`
  return isUsuallyCached(earlier)
    ? {
        kind: 'cold-cache',
        sentence: `The page cache was cold, which it usually is not: ${read}.`,
        remedy: 'Find out what evicts the snapshot: other files, or the memory limit of a cgroup.',
      }
    : {
        kind: 'disk',
        sentence: `The working set came too late from the disk: ${read}.`,
        remedy: remedyForDisk(restore),
      }
}

/** A prefetch that waited for cores, as all else on this host then did. */
function judgeCores({ all, prefetch, stats }: Parts): Verdict | undefined {
  const { installCpuMs } = stats.prefetch
  const isStretched = prefetch >= thresholds.stretch * installCpuMs
  if (!isStretched || prefetch - installCpuMs < thresholds.cores * all) return undefined
  return {
    kind: 'cores',
    sentence: `The cores were busy with other work: the prefetch took ${formatMs(prefetch)} of ${formatMs(all)} for installs of ${formatMs(installCpuMs)} of CPU time.`,
    remedy: 'Keep cores free for restores, or restore fewer VMs at once.',
  }
}

/** Late faults for no other reason. */
function judgeInstalls(restore: Restore, { all, waits }: Parts): Verdict | undefined {
  if (waits.late < thresholds.late * all) return undefined
  return (
    judgeBackend(restore) ?? {
      kind: 'limit',
      sentence: `The pages were installed as fast as this host can, and the guest waited ${formatMs(waits.late)} of ${formatMs(all)}.`,
      remedy: 'A smaller working set takes less, and so does a guest with 2 MiB pages.',
    }
  )
}

function remedyForDisk({ prefetch, workingSet }: Restore): string {
  if (prefetch && 'source' in prefetch && prefetch.source === 'memory-file') {
    return 'Its bytes came in small reads from the memory file: they come from the set once it is proven ("reap-trace verify").'
  }
  const set = workingSet?.path ?? 'the working set'
  return `Keep ${set} on a faster disk, or in the page cache.`
}

function isUsuallyCached(earlier: readonly Restore[]): boolean {
  const warm = earlier.filter(({ stats, workingSet }) => {
    const bytes = (workingSet?.pageCount ?? 0) * 4096
    return stats !== undefined && stats.prefetch.diskBytes <= thresholds.usuallyRead * bytes
  })
  return warm.length > 0 && warm.length > earlier.length / 2
}

/** The other backend, if measurements speak for it. */
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
    return application(
      restore,
      `the prefetch took ${formatMs(completedMs)} of ${formatMs(all)} (the kernel serves the faults, and does not tell their waits)`,
    )
  }
  return (
    judgeBackend(restore) ?? {
      kind: 'disk',
      sentence: `The working set was not in the page cache: ${formatMib(bytes)} came from the disk in ${formatMs(completedMs)} of ${formatMs(all)}.`,
      remedy: 'Restore with the backend "uffd", whose reads are larger, or keep the files cached.',
    }
  )
}

function application({ times }: Restore, cost: string): Verdict {
  const isMarked = times.ready !== undefined
  return {
    kind: 'application',
    sentence: `Nothing is wrong with the restore: ${cost}; the rest is the application's work.`,
    ...(!isMarked && {
      remedy:
        'Mark the time at which the application is ready ("reap-trace ready", or ready()): what it does later does not count then.',
    }),
  }
}

const waitOf = ({ waits }: Parts) => waits['on-demand'] + waits.late + waits.residual

const formatMs = (ms: number) => `${ms.toFixed(ms < 100 ? 1 : 0)} ms`
const formatMib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`
const formatCount = (count: number) => count.toLocaleString('en-US')
const formatPages = (count: number) => `${formatCount(count)} page${count === 1 ? '' : 's'}`
