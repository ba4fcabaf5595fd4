import { expectTypeOf, test } from 'vitest'
import {
  type Backend,
  calibrateHost,
  type DiskWorkingSet,
  type FaultHandler,
  type FaultStats,
  type GuestCalibration,
  type GuestInfo,
  type HostCalibration,
  hostCalibration,
  type MemBackend,
  type PageCachePrefetchResult,
  type PageCacheRecord,
  type PageCacheRecording,
  type PageCacheRestore,
  type PageCosts,
  type PrefetchResult,
  planRestore,
  prefetchPageCache,
  ReapTraceError,
  type ReapTraceErrorCode,
  type Residency,
  type RestorePlan,
  recordPageCache,
  restore,
  type ServeEvent,
  type ServeResult,
  type Snapshot,
  serve,
  type Trace,
  type UffdRestore,
  type Vcpus,
  WorkingSet,
} from '../src/index.js'

test('serve() needs a socket and a memory file, and nothing else', () => {
  expectTypeOf(serve).parameter(0).toHaveProperty('socketPath').toEqualTypeOf<string>()
  expectTypeOf(serve({ socketPath: '', memoryFile: '' })).resolves.toEqualTypeOf<FaultHandler>()
  // @ts-expect-error a socket is needed
  serve({ memoryFile: '' })
  // @ts-expect-error a misspelled option is refused
  serve({ socketPath: '', memoryFile: '', workingset: '' })
  // @ts-expect-error only two policies
  serve({ socketPath: '', memoryFile: '', onFailure: 'ignore' })
  serve({ socketPath: '', memoryFile: '', signal: undefined, workingSet: undefined })
})

test('a handler has promises for the stages of its life', () => {
  expectTypeOf<FaultHandler['connected']>().resolves.toEqualTypeOf<GuestInfo>()
  expectTypeOf<FaultHandler['prefetched']>().resolves.toEqualTypeOf<PrefetchResult>()
  expectTypeOf<FaultHandler['closed']>().resolves.toEqualTypeOf<ServeResult>()
  expectTypeOf<FaultHandler['stats']>().returns.toEqualTypeOf<FaultStats>()
  expectTypeOf<FaultHandler['takeTrace']>().returns.toEqualTypeOf<Trace>()
  expectTypeOf<FaultHandler>().toExtend<AsyncDisposable>()
  expectTypeOf<GuestInfo['regions'][number]['baseAddress']>().toEqualTypeOf<bigint>()
})

test('the end is one of five', () => {
  expectTypeOf<ServeResult['state']>().toEqualTypeOf<
    'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'
  >()
})

test('an event is told by its type', () => {
  const listen = (event: ServeEvent) => {
    if (event.type === 'connected') expectTypeOf(event.pid).toEqualTypeOf<number>()
    if (event.type === 'prefetched') expectTypeOf(event.complete).toEqualTypeOf<boolean>()
    if (event.type === 'warning') expectTypeOf(event.error).toEqualTypeOf<ReapTraceError>()
    if (event.type === 'closed') expectTypeOf(event.stats).toEqualTypeOf<FaultStats>()
  }
  expectTypeOf(listen).parameter(0).toEqualTypeOf<ServeEvent>()
})

test('an error has one of the codes', () => {
  expectTypeOf<ReapTraceError['code']>().toEqualTypeOf<ReapTraceErrorCode>()
  expectTypeOf<ReapTraceErrorCode>().toEqualTypeOf<
    | 'ERR_NATIVE_UNAVAILABLE'
    | 'ERR_UFFD_UNAVAILABLE'
    | 'ERR_SOCKET'
    | 'ERR_HANDSHAKE_TIMEOUT'
    | 'ERR_HANDSHAKE_INVALID'
    | 'ERR_PEER_REFUSED'
    | 'ERR_SNAPSHOT_MISMATCH'
    | 'ERR_WORKING_SET_INVALID'
    | 'ERR_WORKING_SET_IO'
    | 'ERR_SOURCE_READ'
    | 'ERR_FAULT_UNRESOLVED'
    | 'ERR_PAGE_CACHE'
    | 'ERR_CALIBRATION'
    | 'ERR_CLOSED'
  >()
  const error = new ReapTraceError('ERR_CLOSED', '')
  expectTypeOf(error.errno).toEqualTypeOf<number | undefined>()
})

test('a working set is made, not constructed', () => {
  // @ts-expect-error it comes from traces or from a file
  new WorkingSet()
  expectTypeOf(WorkingSet.read).returns.resolves.toEqualTypeOf<WorkingSet>()
  expectTypeOf<WorkingSet['disks']>().toEqualTypeOf<readonly DiskWorkingSet[]>()
  expectTypeOf(WorkingSet.fromTraces).parameter(0).toEqualTypeOf<Iterable<Trace>>()
})

test('the page cache is recorded and prefetched', () => {
  const recording = recordPageCache({ memoryFile: '', diskImages: undefined })
  expectTypeOf(recording).resolves.toEqualTypeOf<PageCacheRecording>()
  expectTypeOf<PageCacheRecording>().toExtend<AsyncDisposable>()
  expectTypeOf<PageCacheRecording['stop']>().returns.resolves.toEqualTypeOf<PageCacheRecord>()
  expectTypeOf<PageCacheRecord['trace']>().toEqualTypeOf<Trace>()
  expectTypeOf<PageCacheRecord['disks']>().toEqualTypeOf<readonly Trace[]>()
  const prefetch = prefetchPageCache({ memoryFile: '', workingSet: '' })
  expectTypeOf(prefetch).resolves.toEqualTypeOf<PageCachePrefetchResult>()
  // @ts-expect-error a working set is needed
  prefetchPageCache({ memoryFile: '' })
  // @ts-expect-error a list of images
  recordPageCache({ memoryFile: '', diskImages: '' })
})

test('a restore is planned, and carried out in one of two ways', () => {
  const plan = planRestore({ snapshot: { memoryFile: '', diskImages: [''] } })
  expectTypeOf(plan).resolves.toEqualTypeOf<RestorePlan<'uffd'> | RestorePlan<'page-cache'>>()
  expectTypeOf<RestorePlan['backend']>().toEqualTypeOf<Backend>()
  expectTypeOf<RestorePlan['residency']>().toEqualTypeOf<Residency | undefined>()
  expectTypeOf<RestorePlan['snapshot']>().toEqualTypeOf<Snapshot>()
  expectTypeOf<Backend>().toEqualTypeOf<'uffd' | 'page-cache'>()
  const all = restore({} as RestorePlan)
  expectTypeOf(all).resolves.toEqualTypeOf<UffdRestore | PageCacheRestore>()
  const one = restore({} as RestorePlan<'uffd'>, { socketPath: '' })
  expectTypeOf(one).resolves.toEqualTypeOf<UffdRestore>()
  expectTypeOf<MemBackend['backend_type']>().toEqualTypeOf<'File' | 'Uffd'>()
  // @ts-expect-error only two backends
  planRestore({ snapshot: { memoryFile: '' }, backend: 'File' })
  // @ts-expect-error the plan has it
  restore({} as RestorePlan, { memoryFile: '' })
})

test('the backend of a restore tells its handler and its prefetch', () => {
  const look = (restored: UffdRestore | PageCacheRestore) => {
    expectTypeOf(restored).toExtend<AsyncDisposable>()
    if (restored.backend === 'uffd') {
      expectTypeOf(restored.handler).toEqualTypeOf<FaultHandler>()
      expectTypeOf(restored.prefetched).resolves.toEqualTypeOf<PrefetchResult>()
    } else {
      expectTypeOf(restored.handler).toEqualTypeOf<undefined>()
      expectTypeOf(restored.prefetched).resolves.toEqualTypeOf<PageCachePrefetchResult>()
    }
  }
  expectTypeOf(look).returns.toEqualTypeOf<void>()
})

test('a host is calibrated without options', () => {
  expectTypeOf(calibrateHost()).resolves.toEqualTypeOf<HostCalibration>()
  expectTypeOf(hostCalibration()).resolves.toEqualTypeOf<HostCalibration | undefined>()
  expectTypeOf<HostCalibration['guests']>().toEqualTypeOf<
    Readonly<Partial<Record<Vcpus, GuestCalibration>>>
  >()
  expectTypeOf<GuestCalibration['reads']>().toEqualTypeOf<PageCosts>()
})
