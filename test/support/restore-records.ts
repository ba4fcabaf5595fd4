import type { FaultStats, RestoreRecord } from '../../src/index.js'
import type { FaultClass, Timeline } from '../../src/uffd/timing.js'

const MEMORY = 64 * 2 ** 20
const PAGE = 4096
const CLASSES = ['on-demand', 'late', 'residual'] as const satisfies readonly FaultClass[]

/** Numbers from 0 to 1, the same for a seed. */
function randomNumbers(seed: number): () => number {
  let state = seed * 7919 + 1
  return () => {
    state = (state * 1103515245 + 12345) % 2 ** 31
    return state / 2 ** 31
  }
}

/** Limits as those of the engine: powers of two of a nanosecond's 1,024, with linear halves. */
const LIMITS = Array.from({ length: 40 }, (_, i) => 1.024 * 2 ** (i >> 1) * (i % 2 === 0 ? 1 : 1.5))

function waitsOf(waitsUs: readonly number[]) {
  const counts = LIMITS.map(
    (limit, i) => waitsUs.filter((us) => us < limit && (i === 0 || us >= LIMITS[i - 1]!)).length,
  )
  return {
    count: waitsUs.length,
    totalUs: waitsUs.reduce((sum, us) => sum + us, 0),
    maxUs: Math.max(0, ...waitsUs),
    buckets: LIMITS.flatMap((limit, i) =>
      counts[i]! > 0 ? [[limit, counts[i]!] as [number, number]] : [],
    ),
  }
}

const START = 5000

function madeTimeline(seed: number, hasSet: boolean): Timeline {
  const random = randomNumbers(seed)
  const fetches = []
  const installs = []
  const groups = hasSet ? 8 : 0
  for (let i = 0; i < groups; i++) {
    const from = START + 2 + i * 1.1
    const waited = random() < 0.4
    const to = from + (waited ? 2 : 0.4)
    fetches.push({ from, to, bytes: 2 ** 19, waited, thread: i % 2 })
    const install = START + 12 + i * 0.3
    installs.push({ from: install, to: install + 0.25, bytes: 2 ** 19, thread: i % 2 })
  }
  const faults = []
  let at = START + 12.5
  for (let i = 0; i < (hasSet ? 60 : 900); i++) {
    at += random() * (hasSet ? 1.2 : 0.12)
    const name: FaultClass = !hasSet ? 'on-demand' : i < 25 ? 'late' : 'residual'
    const wait = 0.02 * 10 ** (random() * 1.6)
    const offset = Math.floor(random() * (MEMORY / PAGE)) * PAGE
    faults.push({ from: at, to: at + wait, class: name, offset })
  }
  const removals = [{ at: START + 40, offset: 0, bytes: 2 ** 21 }]
  return { fetches, installs, faults, removals, missing: 0 }
}

const madePrefetch = {
  fetchMs: 9.1,
  diskMs: 6.2,
  diskBytes: 2 ** 21,
  installMs: 2.4,
  installCpuMs: 2.2,
}

function statsOf({ faults }: Timeline): FaultStats {
  const us = (name: FaultClass) =>
    faults.filter((fault) => fault.class === name).map(({ from, to }) => (to - from) * 1000)
  const [onDemand, late, residual] = CLASSES.map(us) as [number[], number[], number[]]
  const slowest = faults
    .toSorted((a, b) => b.to - b.from - (a.to - a.from))
    .slice(0, 8)
    .map((fault) => ({
      offset: fault.offset,
      class: fault.class,
      waitUs: (fault.to - fault.from) * 1000,
    }))
  return {
    faults: faults.length,
    lateFaults: late.length,
    residualFaults: residual.length,
    installed: 1100,
    zero: 12,
    prefetched: 1024,
    installedAhead: 0,
    present: 3,
    deferred: 0,
    discarded: 0,
    removed: 512,
    bytesRead: 5 * 2 ** 20,
    prefetch: madePrefetch,
    stalledMs: faults.reduce((sum, { from, to }) => sum + to - from, 0) / 2,
    waits: { 'on-demand': waitsOf(onDemand), late: waitsOf(late), residual: waitsOf(residual) },
    slowest,
  }
}

/** A record of a restore with a working set, or on demand. */
export function madeRecord(seed = 1, hasSet = true): RestoreRecord {
  const timeline = madeTimeline(seed, hasSet)
  const lastFault = timeline.faults.at(-1)!
  const stats = statsOf(timeline)
  return {
    version: 1,
    date: '2026-11-27T04:00:00.000Z',
    backend: 'uffd',
    snapshot: { memoryFile: '/snapshots/vm.mem', memoryBytes: MEMORY, pageSize: PAGE },
    ...(hasSet && { workingSet: { path: '/snapshots/vm.ws', pageCount: 1036 } }),
    times: {
      started: START,
      listening: START + 1.2,
      commandStarted: START + 1.5,
      accepted: START + 10.8,
      connected: START + 11.4,
      ...(hasSet && { firstFetch: START + 2, firstInstall: START + 12, prefetched: START + 18.6 }),
      firstFault: timeline.faults[0]!.from,
      ready: lastFault.to + 2,
      commandEnded: lastFault.to + 9,
      closed: lastFault.to + 400,
    },
    ...(hasSet && {
      prefetch: {
        pageCount: 1036,
        extentCount: 140,
        bytes: 2 ** 22,
        ...madePrefetch,
        sinceConnectMs: 7.2,
        source: 'working-set',
        provenBy: 'written',
        complete: true,
      },
    }),
    stats,
    statsAtReady: stats,
    timeline,
    state: 'vm-exited',
    verdict: {
      kind: 'set-does-not-fit',
      sentence:
        'The working set does not fit: 35 of 60 faults were on pages that it does not have.',
      remedy: 'Record it again with the request that is slow.',
    },
  }
}
