import { resolve } from 'node:path'
import { isWorkingSetError, ReapTraceError } from '../errors.js'
import { checkOptions, type OptionRule, oneOf, rules } from '../options.js'
import { diskImagesRule } from '../page-cache/files.js'
import { bringIn, nothingToBring, type PageCachePrefetchResult } from '../page-cache/prefetch.js'
import { type Residency, type Survey, surveyFiles } from '../page-cache/residency.js'
import { checkSize, statMemoryFile } from '../snapshot/disk-image.js'
import type { FaultHandler, PrefetchResult, ServeOptions } from '../uffd/fault-handler.js'
import { serve, serveRules } from '../uffd/serve.js'
import { report } from '../uffd/session.js'
import { internalsOf } from '../working-set/internals.js'
import { readOnce } from '../working-set/open.js'
import { WorkingSet } from '../working-set/working-set.js'
import { type Backend, choose, type Estimate, estimate } from './choice.js'
import { hostModel, type Vcpus } from './host-model.js'
import { learnFromHandler, learnFromPageCache } from './learn-costs.js'

/**
 * All options of {@link serve} as well: they count where the choice is a fault handler. `socketPath` is
 * bound only then; `onStaleWorkingSet` and `snapshotId` mean nothing to the page cache, which has the
 * memory file's own bytes.
 */
export interface PrepareRestoreOptions extends ServeOptions {
  /**
   * Note the pages that the guest asks for, for `handler.takeTrace()`; needs a fault handler.
   * @default false
   */
  readonly record?: boolean | undefined
  /**
   * Which way to take.
   * @default 'auto'
   */
  readonly backend?: Backend | 'auto' | undefined
  /**
   * Disk images that the VM reads, in the order of the record; they are prefetched in either way. Those
   * of which the working set has nothing are left alone.
   */
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

/** `mem_backend` of Firecracker's `PUT /snapshot/load`, as it stands there; the path is absolute. */
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
  /** What was found; `undefined` when there was no working set in a file to look for. */
  readonly residency: Residency | undefined
  /** What each way would have taken; `undefined` on a host that was not measured. */
  readonly estimates: Readonly<Record<Backend, Estimate>> | undefined
  /**
   * What looking and choosing took, in milliseconds. Not in it: what `serve()` does after the choice of a
   * handler, which reads the set's index once a process.
   */
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
  diskImages: diskImagesRule,
  vcpus: oneOf('kvm', 'threads'),
  pageSize: {
    expected: '4096 or 2097152',
    accepts: (value) => value === 4096 || value === 2097152,
  },
  budgetBytes: rules.count,
}
const prepareRules = {
  ...serveRules,
  ...own,
}

/**
 * Chooses how a snapshot's memory reaches its guest, and prepares that: a fault handler that installs
 * the working set, or the kernel's own mapping with the working set in the page cache.
 *
 * The choice takes some tenths of a millisecond: on the JavaScript thread where the files' names and
 * tables are in memory and on a mount that the process knows, on a pool thread where it would wait for
 * them. It goes by what must be (`record`, 2 MiB pages), then by an estimate for each way: samples of
 * the working set are looked for in the page cache, and {@link measureHost} has measured what pages
 * and reads cost here. Restores refresh the costs of reads. A working set that cannot be used leads to
 * the page cache.
 *
 * @throws TypeError for options that make no sense, or that only a fault handler can fulfil with
 * `backend: 'page-cache'`.
 * @throws ReapTraceError what {@link serve} throws. A working set that cannot be used is reported as
 * `warning`, and with `onBadWorkingSet: 'fail'` thrown, in either way; where all of its pages are in the
 * page cache, nothing of it is used, and it is looked at only with `'fail'`.
 *
 * @example
 * await using restore = await prepareRestore({ memoryFile, workingSet, socketPath })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path, mem_backend: restore.memBackend, resume_vm: true,
 * })
 */
export async function prepareRestore(options: PrepareRestoreOptions): Promise<Restore> {
  checkOptions('prepareRestore()', options, prepareRules)
  checkTogether(options)
  options.signal?.throwIfAborted()
  const plan = await planRestore(options)
  options.signal?.throwIfAborted()
  return plan.choice === 'uffd' ? byHandler(options, plan) : byPageCache(options, plan)
}

function checkTogether({ backend, record, pageSize }: PrepareRestoreOptions): void {
  if (backend !== 'page-cache') return
  if (record) {
    throw new TypeError(
      'record: true of prepareRestore() needs a fault handler; recordPageCache() records without one',
    )
  }
  if (pageSize === 2 * 2 ** 20) {
    throw new TypeError('Expected no backend "page-cache" for a guest with 2 MiB pages')
  }
}

interface RestorePlan {
  readonly choice: Backend
  readonly reason: string
  readonly survey: Survey
  readonly estimates: Record<Backend, Estimate> | undefined
  /** Whether there is a file of a working set that was looked for. */
  readonly isInFile: boolean
  /** How many of the disk images the working set has pages of. */
  readonly disks: number
  /** The working set as it was given, or as it was read and checked: no other reads it again. */
  readonly workingSet: WorkingSet | string | undefined
  /** Why it is not used. */
  readonly refusal: ReapTraceError | undefined
  readonly decidedMs: number
}

/** What {@link prepareRestore} would do, and why. */
export async function planRestore(options: PrepareRestoreOptions): Promise<RestorePlan> {
  const startedAt = performance.now()
  const { memoryFile, workingSet, record = false, backend = 'auto', vcpus = 'kvm' } = options
  const set = workingSet instanceof WorkingSet ? workingSet : undefined
  const path = set
    ? (internalsOf(set).file?.path ?? '')
    : ((workingSet as string | undefined) ?? '')
  const [model, found] = await Promise.all([hostModel(), look(memoryFile, path)])
  const { survey } = found
  let { refusal } = found
  const isInFile = path !== ''
  const decide = () => {
    const isUsable = workingSet !== undefined && !refusal
    const estimates = isInFile && isUsable ? estimate(survey, model, vcpus, !!set) : undefined
    const wishes = {
      forced: backend === 'auto' ? undefined : backend,
      record,
      workingSet: refusal ? 'refused' : !isUsable ? 'none' : isInFile ? 'file' : 'places',
      pageSize: Math.max(options.pageSize ?? 0, set?.pageSize ?? 0),
    } as const
    return { ...choose(wishes, survey, estimates), estimates }
  }
  let usable = workingSet
  let choice = decide()
  const decidedMs = performance.now() - startedAt
  // A handler reads and checks the set in any case, and without one it is the slowest way.
  const mustCheck =
    options.onBadWorkingSet === 'fail' ||
    choice.backend === 'uffd' ||
    (isInFile && (survey.pageSize === undefined || survey.memoryBytes !== survey.memoryFileBytes))
  if (workingSet !== undefined && !refusal && mustCheck) {
    const checked = await checkSet(workingSet, memoryFile)
    if (checked instanceof WorkingSet) usable = checked
    else refusal = checked
    if (refusal) choice = decide()
  }
  if (refusal && options.onBadWorkingSet === 'fail') throw refusal
  const { backend: way, reason, estimates } = choice
  const disks = Math.min(
    set ? internalsOf(set).disks.length : survey.disks,
    options.diskImages?.length ?? 0,
  )
  return {
    choice: way,
    reason,
    survey,
    estimates,
    isInFile,
    disks,
    workingSet: usable,
    refusal,
    decidedMs,
  }
}

async function look(
  memoryFile: string,
  workingSet: string,
): Promise<{ survey: Survey; refusal: ReapTraceError | undefined }> {
  try {
    return { survey: await surveyFiles(memoryFile, workingSet), refusal: undefined }
  } catch (error) {
    if (workingSet === '' || !isWorkingSetError(error)) throw error
    return { survey: await surveyFiles(memoryFile, ''), refusal: error }
  }
}

/** The working set, or why it cannot be used for this memory file. */
async function checkSet(
  workingSet: WorkingSet | string,
  memoryFile: string,
): Promise<WorkingSet | ReapTraceError> {
  try {
    const set = typeof workingSet === 'string' ? await readOnce(workingSet) : workingSet
    checkSize(memoryFile, Number((await statMemoryFile(memoryFile)).size), set.memoryBytes)
    return set
  } catch (error) {
    if (!isWorkingSetError(error)) throw error
    return error
  }
}

/** Ends when the restore does, and with the caller's signal, which it lets go of then. */
function endingWith(signal: AbortSignal | undefined): AbortController {
  const ending = new AbortController()
  const pass = () => ending.abort(signal?.reason)
  signal?.addEventListener('abort', pass, { once: true })
  // Not with the listener's option `signal`: Node 20 keeps one such listener of a target, and for the
  // others it depends on the garbage collection whether they are taken away.
  ending.signal.addEventListener('abort', () => signal?.removeEventListener('abort', pass), {
    once: true,
  })
  // By who was told that the socket listens.
  if (signal?.aborted) pass()
  return ending
}

async function byHandler(options: PrepareRestoreOptions, plan: RestorePlan): Promise<Restore> {
  const { backend: _, diskImages, vcpus: __, pageSize: ___, budgetBytes, ...served } = options
  const { signal } = options
  const { workingSet } = plan
  const handler = await serve({ ...served, workingSet, record: options.record ?? false })
  const ending = endingWith(signal)
  handler.closed.catch(() => {}).finally(() => ending.abort(new Error('the restore has ended')))
  const disksPrefetched =
    plan.disks > 0 && workingSet !== undefined && !plan.refusal
      ? bringIn(workingSet, {
          memoryFile: undefined,
          diskImages: diskImages!.slice(0, plan.disks),
          budgetBytes,
          signal: ending.signal,
        }).then(
          (result) => told(result, options),
          (error) => failed(error, options),
        )
      : Promise.resolve(undefined)
  if (plan.survey.missingBytes > 0) learnFromHandler(handler, plan.survey)
  const close = async (how?: { readonly vm?: 'kill' | 'leave' }) => {
    const closed = handler.close(how)
    ending.abort(new Error('the restore was closed'))
    await disksPrefetched
    await closed
  }
  return {
    ...found(plan),
    choice: 'uffd',
    memBackend: { backend_type: 'Uffd', backend_path: resolve(handler.socketPath) },
    handler,
    prefetched: handler.prefetched,
    disksPrefetched,
    close,
    [Symbol.asyncDispose]: close,
  }
}

function byPageCache(options: PrepareRestoreOptions, plan: RestorePlan): Restore {
  const { memoryFile } = options
  const ending = endingWith(options.signal)
  const prefetched = prefetchByPageCache(options, plan, ending.signal)
    .then(
      (result) => told(result, options),
      (error) => failed(error, options),
    )
    .finally(() => ending.abort()) // lets go of the caller's signal
  const close = async () => {
    ending.abort(new Error('the restore was closed'))
    await prefetched
  }
  return {
    ...found(plan),
    choice: 'page-cache',
    memBackend: { backend_type: 'File', backend_path: resolve(memoryFile) },
    handler: undefined,
    prefetched,
    disksPrefetched: prefetched,
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function prefetchByPageCache(
  { memoryFile, diskImages = [], budgetBytes }: PrepareRestoreOptions,
  { survey, isInFile, disks, workingSet, refusal }: RestorePlan,
  signal: AbortSignal,
): Promise<PageCachePrefetchResult> {
  if (refusal) throw refusal
  if (workingSet === undefined) return nothingToBring(0)
  if (isInFile && survey.missingPages === 0 && disks === 0) {
    return nothingToBring(survey.pages)
  }
  const result = await bringIn(workingSet, {
    memoryFile,
    diskImages: diskImages.slice(0, disks),
    budgetBytes,
    signal,
  })
  // Disk images may lie on other disks.
  if (disks === 0) learnFromPageCache(result, survey)
  return result
}

/** The end of a prefetch beside a VM, for which a failure is none. */
function told(
  result: PageCachePrefetchResult,
  options: PrepareRestoreOptions,
): PageCachePrefetchResult {
  if (result.error) report(options, { type: 'warning', error: result.error })
  return result
}

function failed(error: unknown, options: PrepareRestoreOptions): PageCachePrefetchResult {
  const known = error instanceof ReapTraceError ? { error } : {}
  return told({ ...nothingToBring(0), complete: false, ...known }, options)
}

const found = ({ reason, survey, estimates, isInFile, decidedMs }: RestorePlan) => {
  const { pages, extents, missingPages, missingExtents, missingBytes, isVisible } = survey
  const residency = { pages, extents, missingPages, missingExtents, missingBytes, isVisible }
  return { reason, estimates, decidedMs, residency: isInFile ? residency : undefined }
}
