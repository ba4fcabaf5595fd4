import { describe, expect, it } from 'vitest'
import { type FaultStats, judgeRestore, type RestoreRecord } from '../../src/index.js'
import { madeRecord } from '../support/restore-records.js'

const LATE_MS = 40

/**
 * A restore of 1,000 pages: the command starts at 0 ms, the VM connects at 20 ms, and the
 * application is ready at 100 ms. The guest waits for nothing.
 */
function restoreWith(change: {
  times?: Partial<RestoreRecord['times']>
  waitsMs?: Partial<Record<keyof FaultStats['waits'], number>>
  stats?: Partial<FaultStats>
  prefetch?: Partial<FaultStats['prefetch']>
  record?: Partial<RestoreRecord>
}): RestoreRecord {
  const made = madeRecord()
  const wait = (ms = 0) => ({ count: 1, totalUs: 3000 * ms, maxUs: 3000 * ms, buckets: [] })
  const { 'on-demand': onDemand = 0, late = 0, residual = 0 } = change.waitsMs ?? {}
  const stats: FaultStats = {
    ...made.stats!,
    faults: 1234,
    residualFaults: 1234,
    prefetched: 1000,
    stalledMs: onDemand + late + residual,
    waits: { 'on-demand': wait(onDemand), late: wait(late), residual: wait(residual) },
    ...change.stats,
    prefetch: {
      fetchMs: 10,
      diskMs: 0,
      diskBytes: 0,
      installMs: 30,
      installCpuMs: 30,
      ...change.prefetch,
    },
  }
  const { verdict: _, ...record } = made
  return {
    ...record,
    workingSet: { path: '/vm.ws', pageCount: 1000 },
    times: {
      started: 0,
      commandStarted: 0,
      accepted: 20,
      connected: 20,
      prefetched: 60,
      ready: 100,
      commandEnded: 500,
      closed: 500,
      ...change.times,
    },
    stats,
    statsAtReady: stats,
    ...change.record,
  }
}

describe('the verdict', () => {
  it('is the application if the guest hardly waits', () => {
    expect(judgeRestore(restoreWith({ waitsMs: { late: 5, residual: 5 } }))).toEqual({
      kind: 'application',
      sentence:
        'Nothing is wrong with the restore: the guest waited for pages for 10 ms of 100 ms; the VMM and the application took the rest.',
    })
  })

  it('asks for a mark if the end of the restore is only that of the command', () => {
    const verdict = judgeRestore(restoreWith({ times: { ready: undefined } }))
    expect(verdict).toMatchObject({
      kind: 'application',
      sentence: expect.stringContaining('of 500 ms'),
      remedy: expect.stringContaining('reap-trace ready'),
    })
  })

  it.each([
    ['residual', 'set-does-not-fit', '1,234 faults outside its 1,000 pages.'],
    ['on-demand', 'set-missing', '1,234 page faults.'],
  ] as const)('counts %s waits from 15 %% of the time on', (name, kind, end) => {
    const verdict = judgeRestore(restoreWith({ waitsMs: { [name]: 15 } }))
    expect(verdict).toMatchObject({ kind, remedy: expect.stringContaining('ecord') })
    expect(verdict?.sentence).toContain('the guest waited 15 ms of 100 ms for')
    expect(verdict?.sentence.endsWith(end)).toBe(true)
    expect(judgeRestore(restoreWith({ waitsMs: { [name]: 14 } }))?.kind).toBe('application')
  })

  it('counts no more waits than there was time', () => {
    const times = { connected: 20, ready: 50 }
    const { sentence } = judgeRestore(restoreWith({ times, waitsMs: { residual: 70 } }))!
    expect(sentence).toContain('the guest waited 30 ms of 50 ms')
  })

  it('is the failure of the prefetch if its pages are missing because of it', () => {
    const prefetch = { ...madeRecord().prefetch!, complete: false }
    const broken = (residual: number) =>
      judgeRestore(
        restoreWith({ waitsMs: { residual }, stats: { prefetched: 10 }, record: { prefetch } }),
      )
    expect(broken(40)).toEqual({
      kind: 'prefetch-failed',
      sentence: 'The prefetch broke off: the guest waited 40 ms of 100 ms for 1,234 faults.',
      remedy: 'See the warning of this restore for the cause.',
    })
    // It is not known which of its pages were needed.
    expect(broken(5)?.kind).toBe('application')
  })

  it('calls a set too large of which less than three quarters were installed when the guest was ready', () => {
    const size = (prefetched: number) => judgeRestore(restoreWith({ stats: { prefetched } }))
    expect(size(749)).toMatchObject({
      kind: 'set-too-large',
      sentence:
        'The working set is too large: only 749 of its 1,000 pages were installed when the application was ready.',
    })
    expect(size(750)?.kind).toBe('application')
    const unmarked = restoreWith({ stats: { prefetched: 499 }, times: { ready: undefined } })
    expect(judgeRestore(unmarked)?.sentence).toContain('pages were installed at the end.')
  })

  it('is the VMM if it needs half of the time before the handshake', () => {
    const load = (connected: number) =>
      judgeRestore(restoreWith({ times: { accepted: connected, connected, prefetched: 90 } }))
    expect(load(50)).toMatchObject({
      kind: 'vmm',
      sentence: 'The VMM connected late: its handshake ended after 50 ms of 100 ms.',
    })
    expect(load(49)?.kind).toBe('application')
  })

  it('does not blame the VMM for the time until a user starts it', () => {
    const times = { commandStarted: undefined, accepted: 90, connected: 91, prefetched: 95 }
    expect(judgeRestore(restoreWith({ times }))?.kind).toBe('application')
  })

  it('is the disk if the prefetch waited for it half of its time, and the guest too', () => {
    const disk = { fetchMs: 25, diskMs: 20, diskBytes: 4 * 2 ** 20 }
    const verdict = judgeRestore(restoreWith({ waitsMs: { late: LATE_MS }, prefetch: disk }))
    expect(verdict).toEqual({
      kind: 'disk',
      sentence:
        'The disk was too slow for the working set: 4 MiB took 20 ms (200 MiB/s); the guest waited 40 ms of 100 ms for late pages.',
      remedy: 'Keep /vm.ws on a faster disk, or in the page cache.',
    })
    const before = { waitsMs: { late: LATE_MS }, prefetch: { ...disk, diskMs: 19 } }
    expect(judgeRestore(restoreWith(before))?.kind).toBe('limit')
    expect(judgeRestore(restoreWith({ waitsMs: { late: 14 }, prefetch: disk }))?.kind).toBe(
      'application',
    )
  })

  it('is a cold page cache if earlier restores found it warm', () => {
    const disk = { diskMs: 20, diskBytes: 4 * 2 ** 20 }
    const cold = restoreWith({ waitsMs: { late: LATE_MS }, prefetch: disk })
    const ofWarm = { prefetchedPageCount: 2560, diskBytes: 2 ** 20 }
    const ofCold = { prefetchedPageCount: 2560, diskBytes: 4 * 2 ** 20 }
    const recorded = { diskBytes: 0 }
    expect(judgeRestore(cold, [ofWarm, ofCold, ofWarm])).toMatchObject({
      kind: 'cold-cache',
      sentence: expect.stringContaining(
        'The page cache was cold, unlike in most earlier restores: 4 MiB',
      ),
    })
    expect(judgeRestore(cold, [ofCold, ofWarm, ofCold, recorded])?.kind).toBe('disk')
  })

  it('is the cores if the prefetch took two and a half times the CPU time of its installs', () => {
    const late = (installCpuMs: number) =>
      judgeRestore(restoreWith({ waitsMs: { late: LATE_MS }, prefetch: { installCpuMs } }))
    expect(late(16)).toEqual({
      kind: 'cores',
      sentence:
        'The cores were busy with other work: the prefetch took 40 ms of 100 ms, its installs only 16 ms of CPU time.',
      remedy: 'Keep cores free for restores, or restore fewer VMs at once.',
    })
    expect(late(17)?.kind).toBe('limit')
    // Of a long restore it is a small part.
    const prefetch = { installCpuMs: 10 }
    const of = (ready: number) => judgeRestore(restoreWith({ times: { ready }, prefetch }))?.kind
    expect([of(200), of(201)]).toEqual(['cores', 'application'])
  })

  it('counts a prefetch that was cut short until the application was ready', () => {
    const cut = { times: { prefetched: undefined }, record: { prefetch: undefined } }
    const waits = { prefetch: { installCpuMs: 20 } }
    expect(judgeRestore(restoreWith({ ...cut, ...waits }))?.kind).toBe('cores')
  })

  it('blames no cores for a prefetch that waited for the disk, or for none', () => {
    const read = { installCpuMs: 1, diskMs: 30, diskBytes: 2 ** 20 }
    expect(judgeRestore(restoreWith({ waitsMs: { late: 5 }, prefetch: read }))?.kind).toBe(
      'application',
    )
    const none = { workingSet: undefined, prefetch: undefined }
    const without = restoreWith({ record: none, prefetch: { installCpuMs: 0, installMs: 0 } })
    expect(judgeRestore(without)?.kind).toBe('application')
  })

  it('is the backend if measurements of this host speak for the other one', () => {
    const automatic = { backend: 'page-cache', reason: 'a mapped page takes 1 us' } as const
    const late = (ms: number) => restoreWith({ waitsMs: { late: ms }, record: { automatic } })
    expect(judgeRestore(late(LATE_MS))).toEqual({
      kind: 'backend',
      sentence: 'The backend page-cache is faster here: a mapped page takes 1 us.',
      remedy: 'Restore with the backend "auto".',
    })
    expect(judgeRestore(late(5))?.kind).toBe('application')
    const prefetch = {
      pageCount: 1000,
      residentPageCount: 100,
      bytes: 900 * 4096,
      extentCount: 300,
      submittedMs: 10,
      completedMs: 40,
      complete: true,
    }
    const byPageCache = restoreWith({
      record: {
        backend: 'page-cache',
        stats: undefined,
        statsAtReady: undefined,
        prefetch,
        automatic: { backend: 'uffd', reason: 'most of the set is not cached' },
      },
    })
    expect(judgeRestore(byPageCache)).toEqual({
      kind: 'backend',
      sentence: 'The backend uffd is faster here: most of the set is not cached.',
      remedy: 'Restore with the backend "auto".',
    })
    const chosen = { ...byPageCache, automatic: undefined }
    expect(judgeRestore(chosen)).toMatchObject({
      kind: 'disk',
      sentence: expect.stringContaining('the disk took 40 ms of 100 ms for 3.52 MiB.'),
    })
    expect(judgeRestore({ ...chosen, prefetch: { ...prefetch, completedMs: 20 } })?.kind).toBe(
      'application',
    )
  })

  it('is not given before a VM was served', () => {
    const times = { started: 0, listening: 1, closed: 500 }
    expect(judgeRestore({ ...restoreWith({}), times })).toBeUndefined()
  })
})
