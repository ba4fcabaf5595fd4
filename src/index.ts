export { programPath } from './binding/native-path.js'
export {
  probeUserfaultfd,
  requireUserfaultfd,
  type UserfaultfdProbe,
} from './binding/userfaultfd.js'
export { ReapTraceError, type ReapTraceErrorCode, type ReapTraceErrorDetails } from './errors.js'
export type { WarningEvent } from './events.js'
export {
  type PageCachePrefetchResult,
  type PrefetchPageCacheOptions,
  prefetchPageCache,
} from './page-cache/prefetch.js'
export {
  type PageCacheRecord,
  type PageCacheRecording,
  type RecordPageCacheOptions,
  recordPageCache,
} from './page-cache/record.js'
export {
  type ArmFigures,
  type Comparison,
  type ComparisonRun,
  readComparison,
  type Spread,
} from './report/comparison.js'
export { type ReportInput, readReportInput } from './report/inputs.js'
export {
  type RestoreRecord,
  type RestoreTimes,
  readRestoreRecord,
  type Verdict,
  type VerdictKind,
} from './report/record.js'
export { renderReport, writeReport } from './report/render.js'
export { type EarlierRestore, judgeRestore } from './report/verdict.js'
export { writeRestoreRecord } from './report/write-record.js'
export type { Backend, Choice, MeanTime, ResponseTimes, Warmth } from './restore/backend.js'
export { type CalibrateHostOptions, calibrateHost } from './restore/calibrate.js'
export {
  type GuestCalibration,
  type HostCalibration,
  type HostCalibrationOptions,
  hostCalibration,
  type PageCosts,
  type Vcpus,
} from './restore/calibration.js'
export { type PlanRestoreOptions, planRestore, type RestorePlan } from './restore/plan.js'
export {
  type MemBackend,
  type PageCacheRestore,
  type RestoreOptions,
  restore,
  type UffdRestore,
} from './restore/restore.js'
export type { Snapshot } from './snapshot/snapshot.js'
export type {
  EvidenceSummary,
  SetSummary,
  SnapshotDescription,
  SnapshotSummary,
  VariantSummary,
} from './store/describe.js'
export type { HistoryLine } from './store/history.js'
export type { Drift, Quality } from './store/learner/learner.js'
export type { Learned, WrittenSet } from './store/lesson.js'
export { openStore } from './store/open.js'
export type { SnapshotKey, StoreSnapshot } from './store/snapshot-key.js'
export type {
  OpenStoreOptions,
  Store,
  StoreEvent,
  StoreRestore,
  StoreRestoreExtras,
  StoreRestoreOptions,
} from './store/store.js'
export type {
  FaultHandler,
  FaultStats,
  GuestInfo,
  GuestRegion,
  PrefetchResult,
  PrefetchWork,
  ServeEvent,
  ServeOptions,
  ServeResult,
  WorkingSetComparison,
} from './uffd/fault-handler.js'
export { type InterposerOptions, interposerEnvironment } from './uffd/interposer.js'
export { serve } from './uffd/serve.js'
export type { RestoreMessage } from './uffd/telemetry.js'
export type {
  FaultClass,
  FaultSpan,
  FaultWaits,
  FetchSpan,
  InstallSpan,
  RemovalMark,
  SessionTimes,
  SlowFault,
  Timeline,
} from './uffd/timing.js'
export {
  type DiffOptions,
  diffWorkingSets,
  type Overlap,
  type WorkingSetDiff,
} from './working-set/diff.js'
export type { Extent } from './working-set/extents.js'
export { findingsFolder } from './working-set/findings.js'
export { type MergeSetsOptions, mergeWorkingSets } from './working-set/merge-sets.js'
export type { ProofKind, Residency } from './working-set/open.js'
export type { FileReadCost, ReadCost } from './working-set/read-cost.js'
export type { RunLengths, WorkingSetSummary } from './working-set/summary.js'
export {
  type DiskExtent,
  type DiskWorkingSet,
  type Manifest,
  type MergeOptions,
  type Mismatch,
  type Progress,
  type ReadOptions,
  Trace,
  type TraceFields,
  type VerifyOptions,
  type VerifyResult,
  WorkingSet,
  type WorkingSetFinding,
  type WriteOptions,
} from './working-set/working-set.js'
