import { isWorkingSetError } from './checked-plan.js'
import {
  type Backend,
  choose,
  type Estimate,
  estimate,
  type Residency,
  type Survey,
  surveyFiles,
} from './choice.js'
import { ReapTraceError } from './errors.js'
import type { FaultHandler, PrefetchResult, ServeOptions } from './fault-handler.js'
import { hostModel, readRate, type Vcpus } from './host-model.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from './options.js'
import {
  bringIn,
  nothingToBring,
  type PageCachePrefetchResult,
  pathsRule,
  workingSetRule,
} from './page-cache.js'
import { serve, serveRules } from './serve.js'
import { RECORD_AGAIN } from './snapshot.js'
import { planOf, WorkingSet } from './working-set.js'

/**
 * All options of {@link serve} as well: they count where the choice is a fault handler. `socketPath` is
 * bound only then.
 */
export interface PrepareRestoreOptions extends ServeOptions {
  /**
   * Which way to take.
   * @default 'auto'
   */
  readonly backend?: Backend | 'auto' | undefined
  /** Disk images that the VM reads, in the order of the record; they are prefetched in either way. */
  readonly diskImages?: readonly string[] | undefined
  /**
   * What runs the guest: vCPUs of KVM, or threads of the VMM (QEMU's TCG). Their faults cost
   * different times.
   * @default 'kvm'
   */
  readonly vcpus?: Vcpus | undefined
  /**
   * Bytes in a page of the guest, for a snapshot without a working set: 2 MiB pages need a fault
   * handler.
   * @default that of the working set
   */
  readonly pageSize?: 4096 | 2097152 | undefined
  /** See `prefetchPageCache()`. */
  readonly budgetBytes?: number | undefined
}

/** `mem_backend` of Firecracker's `PUT /snapshot/load`, as it stands there. */
export interface MemBackend {
  readonly backend_type: 'File' | 'Uffd'
  readonly backend_path: string
}

/** A restore that is prepared: load the snapshot with `memBackend` now. */
export interface Restore extends AsyncDisposable {
  readonly choice: Backend
  readonly memBackend: MemBackend
  /** Why, in a sentence with the figures. */
  readonly reason: string
  /** What was found; `undefined` when there was no working set to look for. */
  readonly residency: Residency | undefined
  /** What each way would have taken; `undefined` on a host that was not measured. */
  readonly estimates: Readonly<Record<Backend, Estimate>> | undefined
  /** What looking and choosing took, in milliseconds, on a pool thread for the most part. */
  readonly decidedMs: number
  /** Of a restore by userfaultfd. */
  readonly handler: FaultHandler | undefined
  /**
   * What was brought in. Of a fault handler this is `handler.prefetched`; of the page cache it never
   * rejects, and an `error` says what stopped it: the VM runs without it, and slower.
   */
  readonly prefetched: Promise<PrefetchResult | PageCachePrefetchResult>
  /** What was done for `diskImages` beside a fault handler. Never rejects. */
  readonly disksPrefetched: Promise<PageCachePrefetchResult | undefined>
  /** Ends a prefetch that goes on, and the fault handler as `FaultHandler.close()` does. */
  close(options?: { readonly vm?: 'kill' | 'leave' }): Promise<void>
}

const own: Record<Exclude<keyof PrepareRestoreOptions, keyof ServeOptions>, OptionRule> = {
  backend: oneOf('auto', 'uffd', 'page-cache'),
  diskImages: pathsRule,
  vcpus: oneOf('kvm', 'threads'),
  pageSize: {
    expected: '4096 or 2097152',
    accepts: (value) => value === 4096 || value === 2097152,
  },
  budgetBytes: rules.count,
}
const prepareRules = {
  ...serveRules,
  workingSet: workingSetRule,
  ...own,
  memoryFile: required(rules.path),
}

/**
 * Chooses how a snapshot's memory reaches its guest, and prepares that: a fault handler that installs
 * the working set, or the kernel's own mapping with the working set in the page cache.
 *
 * The choice takes a fraction of a millisecond, on a pool thread. It goes by what must be (`record`,
 * 2 MiB pages), then by an estimate for each way: samples of the working set are looked for in the page
 * cache, and {@link measureHost} has measured what pages and reads cost here. Restores refresh the
 * costs of reads.
 *
 * @throws TypeError for options that make no sense.
 * @throws ReapTraceError what {@link serve} throws. A working set that cannot be used is reported as
 * `warning`, and with `onBadWorkingSet: 'fail'` thrown, in either way.
 *
 * @example
 * await using restore = await prepareRestore({ memoryFile, workingSet, socketPath })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path, mem_backend: restore.memBackend, resume_vm: true,
 * })
 */
export async function prepareRestore(options: PrepareRestoreOptions): Promise<Restore> {
  checkOptions('prepareRestore()', options, prepareRules)
  options.signal?.throwIfAborted()
  const plan = await planRestore(options)
  options.signal?.throwIfAborted()
  return plan.choice === 'uffd' ? byHandler(options, plan) : byPageCache(options, plan)
}

interface RestorePlan {
  readonly choice: Backend
  readonly reason: string
  readonly survey: Survey
  readonly estimates: Record<Backend, Estimate> | undefined
  /** Why the working set is not used. */
  readonly refusal: ReapTraceError | undefined
  readonly decidedMs: number
}

/** What {@link prepareRestore} would do, and why. */
export async function planRestore(options: PrepareRestoreOptions): Promise<RestorePlan> {
  const startedAt = performance.now()
  const { memoryFile, workingSet, record = false, backend = 'auto', vcpus = 'kvm' } = options
  const path =
    workingSet instanceof WorkingSet ? (planOf(workingSet)?.path ?? '') : (workingSet ?? '')
  const [model, { survey, refusal }] = await Promise.all([hostModel(), look(memoryFile, path)])
  if (refusal && options.onBadWorkingSet === 'fail') throw refusal
  const estimates = refusal || path === '' ? undefined : estimate(survey, model, vcpus)
  const wishes = {
    forced: backend === 'auto' ? undefined : backend,
    record,
    hasWorkingSet: path !== '' && !refusal,
    pageSize: options.pageSize,
  }
  const { backend: choice, reason } = choose(wishes, survey, estimates)
  const decidedMs = performance.now() - startedAt
  return { choice, reason, survey, estimates, refusal, decidedMs }
}

async function look(
  memoryFile: string,
  workingSet: string,
): Promise<{ survey: Survey; refusal: ReapTraceError | undefined }> {
  try {
    const survey = await surveyFiles(memoryFile, workingSet)
    if (survey.pageSize === undefined || survey.memoryBytes === survey.memoryFileBytes) {
      return { survey, refusal: undefined }
    }
    const refusal = new ReapTraceError(
      'ERR_SNAPSHOT_MISMATCH',
      `the working set is for a memory file of ${survey.memoryBytes} bytes, and ${memoryFile} has ${survey.memoryFileBytes}`,
      { path: memoryFile, check: 'size', hint: RECORD_AGAIN },
    )
    return { survey: { ...survey, pageSize: undefined }, refusal }
  } catch (error) {
    if (workingSet === '' || !isWorkingSetError(error)) throw error
    return { survey: await surveyFiles(memoryFile, ''), refusal: error }
  }
}

async function byHandler(options: PrepareRestoreOptions, plan: RestorePlan): Promise<Restore> {
  const { backend: _, diskImages = [], vcpus: __, pageSize: ___, budgetBytes, ...served } = options
  const handler = await serve({ ...served, record: options.record ?? false })
  const ending = new AbortController()
  const disksPrefetched =
    plan.survey.disks > 0 && diskImages.length > 0 && options.workingSet !== undefined
      ? bringIn(options.workingSet, {
          memoryFile: undefined,
          diskImages,
          budgetBytes,
          signal: ending.signal,
        }).catch(asResult)
      : Promise.resolve(undefined)
  if (plan.survey.missingBytes > 0) learnFromHandler(handler, plan.survey)
  const close = async (how?: { readonly vm?: 'kill' | 'leave' }) => {
    ending.abort(new Error('the restore was closed'))
    await handler.close(how)
  }
  return {
    ...found(options, plan),
    choice: 'uffd',
    memBackend: { backend_type: 'Uffd', backend_path: handler.socketPath },
    handler,
    prefetched: handler.prefetched,
    disksPrefetched,
    close,
    [Symbol.asyncDispose]: close,
  }
}

function byPageCache(options: PrepareRestoreOptions, plan: RestorePlan): Restore {
  const { memoryFile, workingSet, diskImages = [], budgetBytes, signal } = options
  const { survey, refusal } = plan
  const warn = (error: ReapTraceError) => options.onEvent?.({ type: 'warning', error })
  const ending = new AbortController()
  let prefetched: Promise<PageCachePrefetchResult>
  const isThere = survey.missingPages === 0 && (survey.disks === 0 || diskImages.length === 0)
  if (workingSet === undefined || refusal) {
    if (refusal) warn(refusal)
    prefetched = Promise.resolve({
      ...nothingToBring(0),
      ...(refusal && { complete: false, error: refusal }),
    })
  } else if (isThere) {
    prefetched = Promise.resolve(nothingToBring(survey.pages))
  } else {
    prefetched = bringIn(workingSet, {
      memoryFile,
      diskImages,
      budgetBytes,
      signal: signal ? AbortSignal.any([signal, ending.signal]) : ending.signal,
    }).then(
      (result) => {
        if (result.error) warn(result.error)
        learnFromPageCache(result, survey)
        return result
      },
      (error) => {
        if (error instanceof ReapTraceError) warn(error)
        return asResult(error)
      },
    )
  }
  const close = async () => {
    ending.abort(new Error('the restore was closed'))
    await prefetched
  }
  return {
    ...found(options, plan),
    choice: 'page-cache',
    memBackend: { backend_type: 'File', backend_path: memoryFile },
    handler: undefined,
    prefetched,
    disksPrefetched: prefetched,
    close,
    [Symbol.asyncDispose]: close,
  }
}

/** The end of a prefetch beside a VM, for which it is no failure. */
const asResult = (error: unknown): PageCachePrefetchResult => ({
  ...nothingToBring(0),
  complete: false,
  ...(error instanceof ReapTraceError && { error }),
})

const found = (
  { workingSet }: PrepareRestoreOptions,
  { reason, survey, estimates, decidedMs }: RestorePlan,
) => {
  const { pages, extents, missingPages, missingExtents, missingBytes, isVisible } = survey
  const residency = { pages, extents, missingPages, missingExtents, missingBytes, isVisible }
  return {
    reason,
    estimates,
    decidedMs,
    residency: workingSet === undefined ? undefined : residency,
  }
}

/** Restores that read too little say nothing about the disk. */
const ENOUGH_BYTES = 4 * 2 ** 20
const ENOUGH_EXTENTS = 64

function learnFromHandler(handler: FaultHandler, { setDevice, missingBytes }: Survey): void {
  handler.prefetched.then(
    async ({ complete, fetchMs }) => {
      if (!complete || missingBytes < ENOUGH_BYTES) return
      const model = await hostModel()
      model.sawDisk(setDevice, { bytesPerMs: readRate(missingBytes, fetchMs) })
    },
    () => {}, // the session has ended before
  )
}

/** A prefetch shows what its runs cost, or, where those are long, what its bytes do. */
async function learnFromPageCache(
  { bytes, extents, thereMs, complete }: PageCachePrefetchResult,
  { memoryDevice }: Survey,
): Promise<void> {
  if (!complete || extents < ENOUGH_EXTENTS) return
  const model = await hostModel()
  const costs = model.diskCosts(memoryDevice)?.costs
  if (!costs) return
  const isBytes = bytes / costs.cachedBytesPerMs > (extents * costs.extentUs) / 1000
  model.sawDisk(
    memoryDevice,
    isBytes ? { cachedBytesPerMs: bytes / thereMs } : { extentUs: (thereMs * 1000) / extents },
  )
}
