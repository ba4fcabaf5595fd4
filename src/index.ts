export type { ProofKind } from './checked-plan.js'
export type { Backend, Estimate, Residency } from './choice.js'
export { ReapTraceError, type ReapTraceErrorCode } from './errors.js'
export type {
  FaultHandler,
  FaultStats,
  GuestInfo,
  GuestRegion,
  PrefetchResult,
  ServeEvent,
  ServeOptions,
  ServeResult,
  WorkingSetComparison,
} from './fault-handler.js'
export type { DiskCosts, GuestCosts, HostCosts, TouchCosts, Vcpus } from './host-model.js'
export { type InterposerOptions, interposerEnvironment } from './interpose.js'
export { type MeasureHostOptions, measureHost } from './measure-host.js'
export {
  type PageCachePrefetchResult,
  type PrefetchPageCacheOptions,
  prefetchPageCache,
} from './page-cache.js'
export {
  type PageCacheRecord,
  type PageCacheRecording,
  type RecordPageCacheOptions,
  recordPageCache,
} from './page-cache-record.js'
export {
  type MemBackend,
  type PrepareRestoreOptions,
  prepareRestore,
  type Restore,
} from './prepare-restore.js'
export { serve } from './serve.js'
export {
  type DiskExtent,
  type DiskWorkingSet,
  type Extent,
  type Manifest,
  type Mismatch,
  Trace,
  type VerifyResult,
  WorkingSet,
  type WorkingSetFinding,
} from './working-set.js'
