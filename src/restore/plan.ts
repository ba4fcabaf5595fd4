import { native } from '../binding/addon.js'
import { isMissing, isWorkingSetError, type ReapTraceError } from '../errors.js'
import { checkOptions, oneOf, rules } from '../options.js'
import { checkSnapshot, type Snapshot, snapshotRule } from '../snapshot/snapshot.js'
import { internalsOf } from '../working-set/internals.js'
import { openSnapshot, type Residency } from '../working-set/open.js'
import { type WorkingSet, workingSetRule } from '../working-set/working-set.js'
import { type Backend, chooseBackend } from './backend.js'
import { hostCalibration, type Vcpus } from './calibration.js'

export interface PlanRestoreOptions {
  /** What to restore. Those of its disk images of which the working set has pages are prefetched. */
  readonly snapshot: Snapshot
  /** The pages that the guest needs first: a working set, or the path of its file. */
  readonly workingSet?: WorkingSet | string | undefined
  /**
   * The backend to use.
   * @default 'auto'
   */
  readonly backend?: Backend | 'auto' | undefined
  /**
   * Whether the pages that the guest asks for are noted, for `handler.stopRecording()`. That takes a fault
   * handler.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * What runs the guest: vCPUs of KVM, or threads of the VMM (QEMU's TCG). Their faults differ in cost.
   * @default 'kvm'
   */
  readonly vcpus?: Vcpus | undefined
  /**
   * Bytes in a page of the guest, for a snapshot without a working set: 2 MiB pages take a fault
   * handler.
   * @default that of the working set
   */
  readonly pageSize?: 4096 | 2097152 | undefined
  /**
   * What to do when the working set is damaged, or of a memory file of another size: restore without
   * it and report a `warning`, or reject.
   * @default 'on-demand'
   */
  readonly onBadWorkingSet?: 'on-demand' | 'fail' | undefined
  readonly signal?: AbortSignal | undefined
}

/** How a snapshot would be restored now, and why. */
export interface RestorePlan<B extends Backend = Backend> {
  readonly backend: B
  /** Why, in a sentence with its figures. */
  readonly reason: string
  readonly snapshot: Snapshot
  /** As it was given. */
  readonly workingSet: WorkingSet | string | undefined
  /** Why the working set cannot be used; `undefined` when it can, as far as it was looked at. */
  readonly refusal: ReapTraceError | undefined
  /** `undefined` without a working set in a file. */
  readonly residency: Residency | undefined
  readonly record: boolean
  /** The disk images that are prefetched: those of which the working set has pages. */
  readonly diskImages: readonly string[]
  /** What looking and choosing took, in milliseconds. */
  readonly decidedMs: number
}

/** What only `restore()` needs of a plan. */
interface Findings {
  /** The working set as it was given, or as it was read and checked. */
  readonly workingSet: WorkingSet | string | undefined
  readonly onBadWorkingSet: 'on-demand' | 'fail' | undefined
}

const found = new WeakMap<RestorePlan, Findings>()

/** @throws TypeError for anything but a plan of {@link planRestore}. */
export function findingsOf(plan: RestorePlan): Findings {
  const findings = found.get(plan)
  if (findings) return findings
  throw new TypeError('restore() expects a plan of planRestore()')
}

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
  onBadWorkingSet: oneOf('on-demand', 'fail'),
  signal: rules.signal,
}

function checkTogether({ backend, record, pageSize }: PlanRestoreOptions): void {
  if (backend !== 'page-cache') return
  if (record) {
    throw new TypeError(
      'record: true of planRestore() takes a fault handler; recordPageCache() records without one',
    )
  }
  if (pageSize === 2 * 2 ** 20) {
    throw new TypeError('Expected no backend "page-cache" for a guest with 2 MiB pages')
  }
}

/**
 * Chooses how a snapshot's memory reaches its guest: by a fault handler that installs the working set, or
 * by the kernel's own mapping with the working set in the page cache. Changes nothing; {@link restore}
 * carries the plan out.
 *
 * In this order: the backend that was named; a fault handler for `record` and for 2 MiB pages; the page
 * cache without a working set that can be used; a fault handler where more than 5 % of the set is missing
 * from the page cache; else whichever way a page costs less on this host, as {@link calibrateHost} has
 * measured it, and without that the page cache.
 *
 * @throws TypeError for options that make no sense, or that only a fault handler can fulfil with
 * `backend: 'page-cache'`.
 * @throws ReapTraceError
 * - `ERR_SOURCE_READ`: the memory file cannot be opened,
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`: the working set cannot be
 *   used (only with `onBadWorkingSet: 'fail'`).
 *
 * @example
 * const plan = await planRestore({ snapshot: { memoryFile }, workingSet: 'vm.ws' })
 * await using restored = await restore(plan, { socketPath })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path, mem_backend: restored.memBackend, resume_vm: true,
 * })
 */
export async function planRestore(
  options: PlanRestoreOptions,
): Promise<RestorePlan<'uffd'> | RestorePlan<'page-cache'>> {
  const startedAt = performance.now()
  checkOptions('planRestore()', options, planRules)
  checkSnapshot('planRestore()', options.snapshot)
  checkTogether(options)
  const { snapshot, workingSet, record = false, vcpus = 'kvm', signal } = options
  signal?.throwIfAborted()
  const { memoryFile, diskImages = [] } = snapshot
  let refusal: ReapTraceError | undefined
  const look = async () => {
    const opened = await openSnapshot(memoryFile, workingSet, { wantsResidency: true }).catch(
      (error) => {
        if (!isWorkingSetError(error) || options.onBadWorkingSet === 'fail') throw error
        if (!isMissing(error)) refusal = error
        return openSnapshot(memoryFile, undefined)
      },
    )
    native().closeFiles(opened.files)
    return opened
  }
  const [calibration, { set, residency }] = await Promise.all([hostCalibration(), look()])
  signal?.throwIfAborted()
  const choice = chooseBackend({
    named: options.backend === 'auto' ? undefined : options.backend,
    record,
    pageSize: Math.max(options.pageSize ?? 0, set?.pageSize ?? 0),
    workingSet: refusal ? 'refused' : residency ? 'file' : set ? 'unwritten' : 'none',
    residency,
    writtenShare: set?.writtenShare,
    vcpus,
    calibration,
  })
  const diskCount = set ? internalsOf(set).disks.length : 0
  const plan = Object.freeze({
    ...choice,
    snapshot: { ...snapshot },
    workingSet,
    refusal,
    residency,
    record,
    diskImages: diskImages.slice(0, diskCount),
    decidedMs: performance.now() - startedAt,
  })
  found.set(plan, { workingSet: set ?? workingSet, onBadWorkingSet: options.onBadWorkingSet })
  return plan as RestorePlan<'uffd'> | RestorePlan<'page-cache'>
}
