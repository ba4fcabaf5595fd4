import type { ChildProcess } from 'node:child_process'
import { expectTypeOf, test } from 'vitest'
import type * as api from '../src/index.js'
import {
  type Backend,
  type CalibrateHostOptions,
  calibrateHost,
  type DiffOptions,
  type DiskExtent,
  type DiskWorkingSet,
  diffWorkingSets,
  type Extent,
  type FaultHandler,
  type FaultStats,
  type FileReadCost,
  findingsFolder,
  type GuestCalibration,
  type GuestInfo,
  type GuestRegion,
  type HostCalibration,
  hostCalibration,
  type InterposerOptions,
  interposerEnvironment,
  type Manifest,
  type MemBackend,
  type MergeOptions,
  type MergeSetsOptions,
  type Mismatch,
  mergeWorkingSets,
  type Overlap,
  type PageCachePrefetchResult,
  type PageCacheRecord,
  type PageCacheRecording,
  type PageCacheRestore,
  type PageCosts,
  type PlanRestoreOptions,
  type PrefetchPageCacheOptions,
  type PrefetchResult,
  type Progress,
  type ProofKind,
  planRestore,
  prefetchPageCache,
  probeUserfaultfd,
  programPath,
  type ReadCost,
  ReapTraceError,
  type ReapTraceErrorCode,
  type ReapTraceErrorDetails,
  type RecordPageCacheOptions,
  type Residency,
  type RestoreOptions,
  type RestorePlan,
  type RunLengths,
  recordPageCache,
  requireUserfaultfd,
  restore,
  type ServeEvent,
  type ServeOptions,
  type ServeResult,
  type SessionTimes,
  type Snapshot,
  serve,
  type Timeline,
  Trace,
  type TraceFields,
  type UffdRestore,
  type UserfaultfdProbe,
  type Vcpus,
  type VerifyOptions,
  type VerifyResult,
  type WarningEvent,
  WorkingSet,
  type WorkingSetComparison,
  type WorkingSetDiff,
  type WorkingSetFinding,
  type WorkingSetSummary,
  type WriteOptions,
} from '../src/index.js'

const snapshot: Snapshot = { memoryFile: '' }
const socketPath = ''

test('the package exports these values, and no others', () => {
  expectTypeOf<keyof typeof api>().toEqualTypeOf<
    | 'calibrateHost'
    | 'diffWorkingSets'
    | 'findingsFolder'
    | 'hostCalibration'
    | 'interposerEnvironment'
    | 'judgeRestore'
    | 'mergeWorkingSets'
    | 'openStore'
    | 'planRestore'
    | 'prefetchPageCache'
    | 'probeUserfaultfd'
    | 'programPath'
    | 'readComparison'
    | 'readReportInput'
    | 'readRestoreRecord'
    | 'ReapTraceError'
    | 'recordPageCache'
    | 'renderReport'
    | 'requireUserfaultfd'
    | 'restore'
    | 'serve'
    | 'Trace'
    | 'WorkingSet'
    | 'writeReport'
    | 'writeRestoreRecord'
  >()
})

test('a snapshot is a memory file, with disk images and a name where there are any', () => {
  expectTypeOf<keyof Snapshot>().toEqualTypeOf<'memoryFile' | 'diskImages' | 'id'>()
  expectTypeOf<Snapshot['memoryFile']>().toEqualTypeOf<string>()
  expectTypeOf<Snapshot['diskImages']>().toEqualTypeOf<readonly string[] | undefined>()
  expectTypeOf<Snapshot['id']>().toEqualTypeOf<string | undefined>()
  const whole: Snapshot = { memoryFile: '', diskImages: undefined, id: undefined }
  // @ts-expect-error a member that it does not have
  serve({ socketPath, snapshot: { memoryFile: '', diskImage: '' } })
  // @ts-expect-error no path
  serve({ socketPath, snapshot: '' })
  // @ts-expect-error it cannot be changed
  whole.memoryFile = ''
})

test('serve() needs a socket and a snapshot, and nothing else', () => {
  expectTypeOf(serve).parameter(0).toEqualTypeOf<ServeOptions>()
  expectTypeOf(serve({ socketPath, snapshot })).resolves.toEqualTypeOf<FaultHandler>()
  expectTypeOf<keyof ServeOptions>().toEqualTypeOf<
    | 'socketPath'
    | 'snapshot'
    | 'workingSet'
    | 'heldOutPages'
    | 'trustWorkingSet'
    | 'record'
    | 'timeline'
    | 'onBadWorkingSet'
    | 'onStaleWorkingSet'
    | 'connectTimeoutMs'
    | 'readTimeoutMs'
    | 'onReadTimeout'
    | 'vmm'
    | 'vm'
    | 'peerUid'
    | 'startSignal'
    | 'signal'
    | 'onEvent'
  >()
  // @ts-expect-error a socket is needed
  serve({ snapshot })
  // @ts-expect-error a snapshot is needed
  serve({ socketPath })
  // @ts-expect-error a misspelled option is refused
  serve({ socketPath, snapshot, workingset: '' })
  // @ts-expect-error the memory file is the snapshot's
  serve({ socketPath, snapshot, memoryFile: '' })
})

test('an option of serve() may be undefined', () => {
  const options: Required<Omit<ServeOptions, 'socketPath' | 'snapshot'>> = {
    workingSet: undefined,
    heldOutPages: undefined,
    trustWorkingSet: undefined,
    record: undefined,
    timeline: undefined,
    onBadWorkingSet: undefined,
    onStaleWorkingSet: undefined,
    connectTimeoutMs: undefined,
    readTimeoutMs: undefined,
    onReadTimeout: undefined,
    vmm: undefined,
    vm: undefined,
    peerUid: undefined,
    startSignal: undefined,
    signal: undefined,
    onEvent: undefined,
  }
  serve({ socketPath, snapshot, ...options })
})

test('an option of serve() is of its kind', () => {
  const { signal } = new AbortController()
  serve({ socketPath, snapshot, vmm: 1, vm: 'leave', startSignal: AbortSignal.timeout(1), signal })
  serve({ socketPath, snapshot, vmm: {} as ChildProcess, workingSet: {} as WorkingSet })
  expectTypeOf<ServeOptions['vm']>().toEqualTypeOf<'kill' | 'leave' | undefined>()
  expectTypeOf<ServeOptions['onBadWorkingSet']>().toEqualTypeOf<'on-demand' | 'fail' | undefined>()
  expectTypeOf<ServeOptions['onStaleWorkingSet']>().toEqualTypeOf<
    'warn' | 'rewrite' | 'fail' | undefined
  >()
  // @ts-expect-error one of two ends
  serve({ socketPath, snapshot, vm: 'kill-vm' })
  // @ts-expect-error a pid, or an object that has it
  serve({ socketPath, snapshot, vmm: '1' })
  // @ts-expect-error a signal, no time
  serve({ socketPath, snapshot, startSignal: 4000 })
})

test('a handler has promises for the stages of its life', () => {
  expectTypeOf<FaultHandler['connected']>().resolves.toEqualTypeOf<GuestInfo>()
  expectTypeOf<FaultHandler['prefetched']>().resolves.toEqualTypeOf<PrefetchResult>()
  expectTypeOf<FaultHandler['compared']>().resolves.toEqualTypeOf<
    WorkingSetComparison | undefined
  >()
  expectTypeOf<FaultHandler['closed']>().resolves.toEqualTypeOf<ServeResult>()
  expectTypeOf<FaultHandler['detach']>().returns.resolves.toEqualTypeOf<ServeResult>()
  expectTypeOf<FaultHandler['close']>().returns.resolves.toEqualTypeOf<ServeResult>()
  expectTypeOf<FaultHandler['close']>()
    .parameter(0)
    .toEqualTypeOf<{ readonly vm?: 'kill' | 'leave' | undefined } | undefined>()
  expectTypeOf<FaultHandler['stats']>().returns.toEqualTypeOf<FaultStats>()
  expectTypeOf<FaultHandler['times']>().returns.toEqualTypeOf<SessionTimes>()
  expectTypeOf<FaultHandler['timeline']>().returns.toEqualTypeOf<Timeline>()
  expectTypeOf<FaultHandler['stopRecording']>().returns.toEqualTypeOf<Trace>()
  expectTypeOf<FaultHandler>().toExtend<AsyncDisposable>()
  expectTypeOf<GuestInfo['regions']>().toEqualTypeOf<readonly GuestRegion[]>()
  expectTypeOf<GuestRegion>().toEqualTypeOf<{
    readonly baseAddress: number
    readonly size: number
    readonly offset: number
  }>()
})

test('the end is one of five', () => {
  expectTypeOf<ServeResult['state']>().toEqualTypeOf<
    'closed' | 'vm-exited' | 'vm-killed' | 'vm-left' | 'detached'
  >()
  expectTypeOf<ServeResult['stats']>().toEqualTypeOf<FaultStats>()
})

test('counters are numbers, and the result of a prefetch has no error', () => {
  expectTypeOf<
    FaultStats[Exclude<keyof FaultStats, 'prefetch' | 'waits' | 'slowest'>]
  >().toEqualTypeOf<number>()
  expectTypeOf<keyof PrefetchResult>().toEqualTypeOf<
    | 'pageCount'
    | 'extentCount'
    | 'bytes'
    | 'fetchMs'
    | 'diskMs'
    | 'diskBytes'
    | 'installMs'
    | 'installCpuMs'
    | 'sinceConnectMs'
    | 'source'
    | 'provenBy'
    | 'complete'
  >()
  expectTypeOf<PrefetchResult['provenBy']>().toEqualTypeOf<ProofKind | undefined>()
  expectTypeOf<ProofKind>().toEqualTypeOf<'written' | 'compared' | 'snapshot-id'>()
})

test('an event is narrowed by its type', () => {
  const listen = (event: ServeEvent) => {
    if (event.type === 'listening') expectTypeOf(event.socketPath).toEqualTypeOf<string>()
    if (event.type === 'connected') expectTypeOf(event.pid).toEqualTypeOf<number>()
    if (event.type === 'prefetched') expectTypeOf(event.complete).toEqualTypeOf<boolean>()
    if (event.type === 'warning') expectTypeOf(event.error).toEqualTypeOf<ReapTraceError>()
    if (event.type === 'compared') expectTypeOf(event.rewritten).toEqualTypeOf<boolean>()
    if (event.type === 'closed') {
      expectTypeOf(event.stats).toEqualTypeOf<FaultStats>()
      expectTypeOf(event.error).toEqualTypeOf<ReapTraceError | undefined>()
    }
  }
  expectTypeOf(listen).parameter(0).toEqualTypeOf<ServeEvent>()
  expectTypeOf<ServeEvent['type']>().toEqualTypeOf<
    'listening' | 'connected' | 'prefetched' | 'ready' | 'warning' | 'compared' | 'closed'
  >()
  expectTypeOf<WarningEvent['error']>().toEqualTypeOf<ReapTraceError>()
})

test('an error has one of the codes', () => {
  expectTypeOf<ReapTraceError['code']>().toEqualTypeOf<ReapTraceErrorCode>()
  expectTypeOf<ReapTraceErrorCode>().toEqualTypeOf<
    | 'ERR_NATIVE_UNAVAILABLE'
    | 'ERR_UFFD_UNAVAILABLE'
    | 'ERR_LIMIT'
    | 'ERR_SOCKET'
    | 'ERR_HANDSHAKE_TIMEOUT'
    | 'ERR_VMM_EXITED'
    | 'ERR_HANDSHAKE_INVALID'
    | 'ERR_PEER_REFUSED'
    | 'ERR_VMM_UNSUPPORTED'
    | 'ERR_SNAPSHOT_MISMATCH'
    | 'ERR_WORKING_SET_INVALID'
    | 'ERR_WORKING_SET_IO'
    | 'ERR_UNTRUSTED_FILE'
    | 'ERR_TRACE_INVALID'
    | 'ERR_TRACE_IO'
    | 'ERR_RECORD_INVALID'
    | 'ERR_RECORD_IO'
    | 'ERR_REPORT_IO'
    | 'ERR_STORE_INVALID'
    | 'ERR_STORE_IO'
    | 'ERR_SOURCE_READ'
    | 'ERR_FAULT_UNRESOLVED'
    | 'ERR_PAGE_CACHE'
    | 'ERR_CALIBRATION'
    | 'ERR_CLOSED'
  >()
  expectTypeOf(ReapTraceError).constructorParameters.toEqualTypeOf<
    [code: ReapTraceErrorCode, message: string, details?: ReapTraceErrorDetails | undefined]
  >()
  const error = new ReapTraceError('ERR_CLOSED', '')
  expectTypeOf(error).toExtend<Error>()
  expectTypeOf(error.hint).toEqualTypeOf<string | undefined>()
  expectTypeOf(error.errno).toEqualTypeOf<number | undefined>()
})

test('a trace is made of its fields, and kept in a file', () => {
  expectTypeOf(Trace).constructorParameters.toEqualTypeOf<[TraceFields]>()
  expectTypeOf<Trace['pages']>().toEqualTypeOf<Uint32Array>()
  expectTypeOf<Trace['timesUs']>().toEqualTypeOf<Uint32Array>()
  expectTypeOf<Trace['writtenShare']>().toEqualTypeOf<number | undefined>()
  expectTypeOf<Trace['write']>().returns.resolves.toEqualTypeOf<void>()
  expectTypeOf(Trace.read).returns.resolves.toEqualTypeOf<Trace>()
})

test('a working set is made, not constructed', () => {
  // @ts-expect-error it comes from traces or from a file
  new WorkingSet()
  expectTypeOf(WorkingSet.read).returns.resolves.toEqualTypeOf<WorkingSet>()
  expectTypeOf(WorkingSet.fromTraces).parameter(0).toEqualTypeOf<Iterable<Trace | TraceFields>>()
  expectTypeOf(WorkingSet.fromTraces).parameter(1).toEqualTypeOf<MergeOptions | undefined>()
  expectTypeOf<WorkingSet['pageCount']>().toEqualTypeOf<number>()
  expectTypeOf<WorkingSet['runCount']>().toEqualTypeOf<number>()
  expectTypeOf<WorkingSet['order']>().toEqualTypeOf<Trace>()
  expectTypeOf<WorkingSet['extents']>().toEqualTypeOf<readonly Extent[]>()
  expectTypeOf<WorkingSet['disks']>().toEqualTypeOf<readonly DiskWorkingSet[]>()
  expectTypeOf<DiskWorkingSet['extents']>().toEqualTypeOf<readonly DiskExtent[]>()
  expectTypeOf<WorkingSet['manifest']>().toEqualTypeOf<Manifest | undefined>()
})

test('a working set is written from a snapshot, and verified with one', () => {
  const set = {} as WorkingSet
  expectTypeOf(set.write('', { snapshot, label: '' })).resolves.toEqualTypeOf<Manifest>()
  expectTypeOf<keyof WriteOptions>().toEqualTypeOf<'snapshot' | 'label' | 'signal' | 'onProgress'>()
  expectTypeOf(set.verify(snapshot)).resolves.toEqualTypeOf<VerifyResult>()
  expectTypeOf<keyof VerifyOptions>().toEqualTypeOf<'signal' | 'onProgress'>()
  expectTypeOf<VerifyResult['mismatches']>().toEqualTypeOf<readonly Mismatch[]>()
  expectTypeOf<VerifyResult['mismatchedPageCount']>().toEqualTypeOf<number>()
  expectTypeOf<WorkingSetComparison>().toExtend<VerifyResult>()
  expectTypeOf<Progress>().toEqualTypeOf<{
    readonly pageCount: number
    readonly totalPageCount: number
  }>()
  expectTypeOf(set.findings()).resolves.toEqualTypeOf<readonly WorkingSetFinding[]>()
  expectTypeOf(set.describe()).toEqualTypeOf<WorkingSetSummary>()
  expectTypeOf<WorkingSetSummary['runLengths']>().toEqualTypeOf<readonly RunLengths[]>()
  expectTypeOf(set.readCost('')).resolves.toEqualTypeOf<ReadCost>()
  expectTypeOf<ReadCost['memoryFile']>().toEqualTypeOf<FileReadCost | undefined>()
  // @ts-expect-error a snapshot is needed
  set.write('', { label: '' })
  // @ts-expect-error the label is no part of a manifest
  set.write('', { snapshot, manifest: { label: '' } })
  // @ts-expect-error a snapshot, no path
  set.verify('')
})

test('working sets are compared and merged', () => {
  const set = {} as WorkingSet
  expectTypeOf(diffWorkingSets(set, set, { firstMs: 1 })).toEqualTypeOf<WorkingSetDiff>()
  expectTypeOf<WorkingSetDiff['all']>().toEqualTypeOf<Overlap>()
  expectTypeOf<keyof DiffOptions>().toEqualTypeOf<'firstMs'>()
  expectTypeOf(mergeWorkingSets([set], { minSets: 1 })).toEqualTypeOf<WorkingSet>()
  expectTypeOf<keyof MergeSetsOptions>().toEqualTypeOf<'minSets'>()
  // @ts-expect-error sets, no paths
  mergeWorkingSets([''])
})

test('the page cache is recorded and prefetched', () => {
  expectTypeOf(recordPageCache({ snapshot })).resolves.toEqualTypeOf<PageCacheRecording>()
  expectTypeOf<keyof RecordPageCacheOptions>().toEqualTypeOf<
    'snapshot' | 'intervalMs' | 'onEvent'
  >()
  expectTypeOf<PageCacheRecording>().toExtend<AsyncDisposable>()
  expectTypeOf<PageCacheRecording['stop']>().returns.resolves.toEqualTypeOf<PageCacheRecord>()
  expectTypeOf<PageCacheRecord['trace']>().toEqualTypeOf<Trace>()
  expectTypeOf<PageCacheRecord['disks']>().toEqualTypeOf<readonly Trace[]>()
  const prefetch = prefetchPageCache({ snapshot, workingSet: '' })
  expectTypeOf(prefetch).resolves.toEqualTypeOf<PageCachePrefetchResult>()
  expectTypeOf<keyof PrefetchPageCacheOptions>().toEqualTypeOf<
    'snapshot' | 'workingSet' | 'trustWorkingSet' | 'maxBytes' | 'signal' | 'onEvent'
  >()
  expectTypeOf<keyof PageCachePrefetchResult>().toEqualTypeOf<
    | 'pageCount'
    | 'residentPageCount'
    | 'bytes'
    | 'extentCount'
    | 'startedAtMs'
    | 'submittedMs'
    | 'completedMs'
    | 'complete'
  >()
  for (const options of [{} as RecordPageCacheOptions, {} as PrefetchPageCacheOptions]) {
    expectTypeOf(options.onEvent).toEqualTypeOf<((event: WarningEvent) => void) | undefined>()
  }
  // @ts-expect-error a working set is needed
  prefetchPageCache({ snapshot })
  // @ts-expect-error the images are the snapshot's
  recordPageCache({ snapshot, diskImages: [] })
})

test('a restore is planned, and carried out in one of two ways', () => {
  const plan = planRestore({ snapshot: { memoryFile: '', diskImages: [''] } })
  expectTypeOf(plan).resolves.toEqualTypeOf<RestorePlan<'uffd'> | RestorePlan<'page-cache'>>()
  expectTypeOf<PlanRestoreOptions['backend']>().toEqualTypeOf<Backend | 'auto' | undefined>()
  expectTypeOf<RestorePlan['backend']>().toEqualTypeOf<Backend>()
  expectTypeOf<RestorePlan['residency']>().toEqualTypeOf<Residency | undefined>()
  expectTypeOf<RestorePlan['refusal']>().toEqualTypeOf<ReapTraceError | undefined>()
  expectTypeOf<RestorePlan['snapshot']>().toEqualTypeOf<Snapshot>()
  expectTypeOf<Backend>().toEqualTypeOf<'uffd' | 'page-cache'>()
  expectTypeOf<MemBackend['backend_type']>().toEqualTypeOf<'File' | 'Uffd'>()
  // @ts-expect-error a misspelled option is refused
  planRestore({ snapshot, vcpu: 'kvm' })
  // @ts-expect-error only two backends
  planRestore({ snapshot, backend: 'File' })
  // @ts-expect-error only restore() reports what goes wrong
  planRestore({ snapshot, onEvent: () => {} })
})

test("a plan's backend tells what its restore is", async () => {
  const plan = await planRestore({ snapshot })
  expectTypeOf(restore(plan)).resolves.toEqualTypeOf<UffdRestore | PageCacheRestore>()
  if (plan.backend === 'uffd') {
    expectTypeOf(restore(plan, { socketPath })).resolves.toEqualTypeOf<UffdRestore>()
  } else {
    expectTypeOf(restore(plan)).resolves.toEqualTypeOf<PageCacheRestore>()
  }
  const any = restore({} as RestorePlan, { startSignal: AbortSignal.timeout(1), vm: 'leave' })
  expectTypeOf(any).resolves.toEqualTypeOf<UffdRestore | PageCacheRestore>()
  for (const planned of ['snapshot', 'workingSet', 'record', 'onBadWorkingSet'] as const) {
    expectTypeOf<RestoreOptions>().not.toHaveProperty(planned)
  }
  // @ts-expect-error the plan has it
  restore(plan, { snapshot })
  // @ts-expect-error a misspelled option is refused
  restore(plan, { socketpath: '' })
})

test('the backend of a restore tells its handler and its prefetch', () => {
  const look = (restored: UffdRestore | PageCacheRestore) => {
    expectTypeOf(restored).toExtend<AsyncDisposable>()
    expectTypeOf(restored.memBackend).toEqualTypeOf<MemBackend>()
    expectTypeOf(restored.plan).toEqualTypeOf<RestorePlan>()
    expectTypeOf(restored.close).returns.resolves.toEqualTypeOf<void>()
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
  expectTypeOf(calibrateHost).parameter(0).toEqualTypeOf<CalibrateHostOptions | undefined>()
  expectTypeOf(hostCalibration()).resolves.toEqualTypeOf<HostCalibration | undefined>()
  expectTypeOf<HostCalibration['guests']>().toEqualTypeOf<
    Readonly<Partial<Record<Vcpus, GuestCalibration>>>
  >()
  expectTypeOf<GuestCalibration['reads']>().toEqualTypeOf<PageCosts>()
  expectTypeOf<Vcpus>().toEqualTypeOf<'kvm' | 'threads'>()
})

test('the environment of an interposed VMM is made for a snapshot', () => {
  const added = interposerEnvironment({ snapshot, socketPath })
  expectTypeOf(added).toEqualTypeOf<Record<string, string>>()
  expectTypeOf<InterposerOptions['onUnreachable']>().toEqualTypeOf<'file' | 'stop' | undefined>()
  interposerEnvironment({ snapshot, socketPath, env: process.env })
  // @ts-expect-error the memory file is the snapshot's
  interposerEnvironment({ memoryFile: '', socketPath })
})

test('a host and the package can be asked for what they have', () => {
  expectTypeOf(probeUserfaultfd).returns.toEqualTypeOf<UserfaultfdProbe>()
  expectTypeOf<UserfaultfdProbe[keyof UserfaultfdProbe]>().toEqualTypeOf<number | boolean>()
  expectTypeOf(requireUserfaultfd).parameters.toEqualTypeOf<
    [probe?: UserfaultfdProbe | undefined]
  >()
  expectTypeOf(programPath).toEqualTypeOf<(name: 'reap-guest' | 'reap-microvm') => string>()
  expectTypeOf(findingsFolder).returns.resolves.toHaveProperty('isUsable')
})
