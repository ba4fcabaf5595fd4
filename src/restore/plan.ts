import { unlessAborted } from '../abort.js'
import { native } from '../binding/addon.js'
import { isMissing, isWorkingSetError, ReapTraceError } from '../errors.js'
import { checkOptions, oneOf, rules } from '../options.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { internalsOf } from '../working-set/internals.js'
import { openSnapshot, type Residency } from '../working-set/open.js'
import { type WorkingSet, workingSetRule } from '../working-set/working-set.js'
import {
  type Backend,
  type Choice,
  type ChoiceInputs,
  chooseBackend,
  measuredChoice,
  type ResponseTimes,
  trialOf,
  type Warmth,
  warmthOf,
} from './backend.js'
import {
  calibrationRule,
  type HostCalibration,
  hostCalibration,
  type Vcpus,
} from './calibration.js'

/** Options of {@link planRestore}. */
export interface PlanRestoreOptions {
  /** The snapshot to restore. Disk images with pages in the working set are prefetched. */
  readonly snapshot: Snapshot
  /** Pages to prefetch: a working set, or the path of its file. */
  readonly workingSet?: WorkingSet | string | undefined
  /**
   * The backend to use.
   * @default 'auto'
   */
  readonly backend?: Backend | 'auto' | undefined
  /**
   * Whether to record the pages that the guest touches, for `handler.stopRecording()`. Requires a
   * fault handler.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * Kind of vCPUs: those of KVM, or threads of the VMM (QEMU's TCG). The costs of their faults
   * differ.
   * @default 'kvm'
   */
  readonly vcpus?: Vcpus | undefined
  /**
   * Page size of the guest in bytes, for a snapshot without a working set: 2 MiB pages require a
   * fault handler.
   * @default the page size of the working set
   */
  readonly pageSize?: 4096 | 2097152 | undefined
  /**
   * Whether to use a working-set file that belongs to another user than this one and root, or that
   * its group or others may write to.
   * @default false
   */
  readonly trustWorkingSet?: boolean | undefined
  /**
   * What to do with a working set that is damaged, belongs to a memory file of another size, or is
   * in a file that is not trusted: restore without it and report a `warning`, or reject.
   * @default 'on-demand'
   */
  readonly onBadWorkingSet?: 'on-demand' | 'fail' | undefined
  /**
   * Costs of a page on this host.
   * @default the result of {@link hostCalibration}, unless another user may write to its file
   */
  readonly calibration?: HostCalibration | undefined
  readonly signal?: AbortSignal | undefined
}

/** Plan for a restore, with the reason for its backend. */
export interface RestorePlan<B extends Backend = Backend> {
  readonly backend: B
  /**
   * Reason for the backend, as a sentence with figures. It ends with the path of a working-set file
   * that does not exist yet.
   */
  readonly reason: string
  /**
   * Choice that `'auto'` would make from measurements of the page cache or of this host
   * ({@link calibrateHost}), whatever backend was named; `undefined` without such measurements.
   */
  readonly automatic: Choice | undefined
  readonly snapshot: Snapshot
  /** The working set, as passed to `planRestore()`. */
  readonly workingSet: WorkingSet | string | undefined
  /** The error for a working set that cannot be used. */
  readonly refusal: ReapTraceError | undefined
  /** Whether the working set is the path of a file that does not exist yet. */
  readonly isWorkingSetMissing: boolean
  /** Page-cache residency of the working set; `undefined` for a set without a file. */
  readonly residency: Residency | undefined
  readonly record: boolean
  /** Paths of the disk images to prefetch: those with pages in the working set. */
  readonly diskImages: readonly string[]
  /** Duration of the planning, in milliseconds. */
  readonly decidedMs: number
}

/** Part of a plan for `restore()` alone. */
interface PlanInternals {
  /** The working set as passed, or as read and checked. */
  readonly workingSet: WorkingSet | string | undefined
  readonly trustWorkingSet: boolean | undefined
  readonly onBadWorkingSet: 'on-demand' | 'fail' | undefined
}

const internals = new WeakMap<RestorePlan, PlanInternals>()

/** @throws TypeError for anything but a plan of {@link planRestore}. */
export function planInternalsOf(plan: RestorePlan): PlanInternals {
  const found = internals.get(plan)
  if (found) return found
  throw new TypeError('restore() expects a plan of planRestore()')
}

/** Result of `hostCalibration()`, or `'untrusted'`: a restore does not fail because of it. */
const savedCalibration = (): Promise<HostCalibration | 'untrusted' | undefined> =>
  hostCalibration().catch((error) => {
    if (error instanceof ReapTraceError && error.code === 'ERR_UNTRUSTED_FILE') return 'untrusted'
    throw error
  })

const planRules = {
  snapshot: snapshotRule,
  workingSet: workingSetRule,
  backend: oneOf('auto', 'uffd', 'page-cache'),
  record: rules.boolean,
  vcpus: oneOf('kvm', 'threads'),
  pageSize: {
    expected: '4096 or 2097152',
    accepts: (value: unknown) => value === 4096 || value === 2097152,
  },
  trustWorkingSet: rules.boolean,
  onBadWorkingSet: oneOf('on-demand', 'fail'),
  calibration: calibrationRule,
  signal: rules.signal,
}

function checkPlan(caller: string, options: PlanRestoreOptions): void {
  checkOptions(caller, options, planRules)
  checkSnapshot(caller, options.snapshot)
  const { backend, record, pageSize } = options
  if (backend !== 'page-cache') return
  if (record) {
    throw new TypeError(
      `${caller} needs a fault handler for record: true, not backend "page-cache"; recordPageCache() records without one`,
    )
  }
  if (pageSize === 2 * 2 ** 20) {
    throw new TypeError('A guest with 2 MiB pages needs a fault handler, not backend "page-cache"')
  }
}

/**
 * Chooses the backend of a restore: a fault handler that installs the working set, or a mapping of
 * the memory file with the working set in the page cache. Has no side effects; {@link restore}
 * executes the plan.
 *
 * The first rule that applies decides: the backend named by the caller; a fault handler for
 * `record`, for 2 MiB pages, and for a memory file whose page cache VMs cannot share (FUSE with
 * direct I/O); the page cache without a usable working set; a fault handler if
 * more than 5 % of the set is missing from the page cache; the backend with the lower cost of a
 * page on this host, as measured by {@link calibrateHost}; the page cache if the host is not
 * calibrated.
 *
 * @throws TypeError for invalid options, including `backend: 'page-cache'` with options that
 * require a fault handler.
 * @throws ReapTraceError
 * - `ERR_SOURCE_READ`: the memory file cannot be opened,
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`,
 *   `ERR_UNTRUSTED_FILE`: the working set cannot be used (only with `onBadWorkingSet: 'fail'`).
 *
 * @example
 * // `await using` needs TypeScript 5.2 or Node 24; otherwise call restored.close() in a `finally`.
 * const plan = await planRestore({ snapshot: { memoryFile }, workingSet: 'vm.ws' })
 * await using restored = await restore(plan, { socketPath })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path, mem_backend: restored.memBackend, resume_vm: true,
 * })
 */
export async function planRestore(
  options: PlanRestoreOptions,
): Promise<RestorePlan<'uffd'> | RestorePlan<'page-cache'>> {
  checkPlan('planRestore()', options)
  return (await makePlan(options, {})).plan
}

/** What a store adds to the inputs of a plan. */
export interface StoreInputs {
  readonly responses?: ResponseTimes | undefined
  /** Whether to take the backend that would not be chosen, where there is a choice. */
  readonly tryOther?: boolean | undefined
}

/** A plan of {@link planStoreRestore}. */
export interface StorePlan {
  /** Its `record` is true with a fault handler, also if `options.record` is not. */
  readonly plan: RestorePlan<'uffd'> | RestorePlan<'page-cache'>
  /** Whether the backend is the one that would not be chosen. */
  readonly isTrial: boolean
  /** State of the page cache now; `undefined` without the residency of a working set. */
  readonly warmth: Warmth | undefined
}

/**
 * {@link planRestore} for a store, which learns from every restore: its plan records whenever a fault
 * handler serves the guest, but does not choose one only to record. `record: true` still does.
 *
 * @param caller the function that the user has called, for messages about its options.
 */
export async function planStoreRestore(
  caller: string,
  options: PlanRestoreOptions,
  store: StoreInputs,
): Promise<StorePlan> {
  checkPlan(caller, options)
  return makePlan(options, { ...store, recordsIfHandled: true })
}

async function makePlan(
  options: PlanRestoreOptions,
  {
    responses,
    tryOther = false,
    recordsIfHandled = false,
  }: StoreInputs & { readonly recordsIfHandled?: boolean },
): Promise<StorePlan> {
  const startedAt = performance.now()
  const { snapshot, workingSet, trustWorkingSet, record = false, vcpus = 'kvm', signal } = options
  signal?.throwIfAborted()
  const { memoryFile, diskImages = [] } = snapshot
  let refusal: ReapTraceError | undefined
  let isWorkingSetMissing = false
  const openOrRefuse = async () => {
    const opened = await openSnapshot(memoryFile, workingSet, {
      wantsResidency: true,
      isTrusted: trustWorkingSet,
    }).catch((error) => {
      if (!isWorkingSetError(error) || options.onBadWorkingSet === 'fail') throw error
      isWorkingSetMissing = isMissing(error)
      if (!isWorkingSetMissing) refusal = error
      return openSnapshot(memoryFile, undefined, { wantsResidency: true })
    })
    native().closeFiles(opened.files)
    return opened
  }
  const [calibration, { set, isMappable, residency }] = await Promise.all([
    options.calibration ?? savedCalibration(),
    unlessAborted(openOrRefuse(), [signal], () => {}),
  ])
  signal?.throwIfAborted()
  const inputs: ChoiceInputs = {
    named: options.backend === 'auto' ? undefined : options.backend,
    record,
    pageSize: Math.max(options.pageSize ?? 0, set?.pageSize ?? 0),
    isMappable,
    workingSet: refusal ? 'refused' : residency ? 'file' : set ? 'unwritten' : 'none',
    residency,
    writtenShare: set?.writtenShare,
    vcpus,
    calibration,
    responses,
  }
  const trial = tryOther ? trialOf(inputs) : undefined
  const { backend, reason } = trial ?? chooseBackend(inputs)
  const diskCount = set ? internalsOf(set).disks.length : 0
  const plan = Object.freeze({
    backend,
    reason: isWorkingSetMissing
      ? `${reason}; there is no working-set file ${workingSet} yet`
      : reason,
    snapshot: { ...snapshot },
    automatic: measuredChoice(inputs),
    workingSet,
    refusal,
    isWorkingSetMissing,
    residency,
    record: record || (recordsIfHandled && backend === 'uffd'),
    diskImages: diskImages.slice(0, diskCount),
    decidedMs: performance.now() - startedAt,
  })
  const { onBadWorkingSet } = options
  internals.set(plan, { workingSet: set ?? workingSet, trustWorkingSet, onBadWorkingSet })
  return {
    plan: plan as StorePlan['plan'],
    isTrial: trial !== undefined,
    warmth: residency && warmthOf(residency),
  }
}
