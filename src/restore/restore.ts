import { resolve } from 'node:path'
import { onAbort } from '../abort.js'
import { isMissing, ReapTraceError } from '../errors.js'
import { report, warning } from '../events.js'
import { checkOptions, rules } from '../options.js'
import {
  alreadyCached,
  type PageCachePrefetchResult,
  prefetchFiles,
} from '../page-cache/prefetch.js'
import type { FaultHandler, PrefetchResult, ServeOptions } from '../uffd/fault-handler.js'
import { serve, serveRules } from '../uffd/serve.js'
import { pathForVmm } from '../uffd/socket-path.js'
import type { Backend } from './backend.js'
import { planInternalsOf, type RestorePlan } from './plan.js'

/** Options that the plan already has. */
type Planned = 'snapshot' | 'workingSet' | 'record' | 'onBadWorkingSet'

/**
 * Options of `restore()`. Those of `serve()` apply to a plan with a fault handler;
 * `onStaleWorkingSet` has no effect on the page cache, which holds the bytes of the memory file.
 */
export interface RestoreOptions extends Omit<ServeOptions, Planned | 'socketPath'> {
  /** Path of the socket of the fault handler; required for a plan whose `backend` is `uffd`. */
  readonly socketPath?: string | undefined
  /**
   * Path of the socket (`uffd`) or of the memory file (`page-cache`) inside the VMM's jail.
   * @default the absolute path on this host; `socketPath` as given if its absolute path has more
   * than 107 bytes
   */
  readonly vmmPath?: string | undefined
  /**
   * Maximum number of bytes read into the page cache.
   * @default half of the available memory
   */
  readonly maxBytes?: number | undefined
}

/** `mem_backend` of Firecracker's `PUT /snapshot/load`. */
export interface MemBackend {
  readonly backend_type: 'File' | 'Uffd'
  readonly backend_path: string
}

interface AnyRestore extends AsyncDisposable {
  /** Backend to load the snapshot with. */
  readonly memBackend: MemBackend
  readonly plan: RestorePlan
  /** Reason of the plan. */
  readonly reason: string
  /** Result of the prefetch of disk images; `undefined` without disk images. Never rejects. */
  readonly disksPrefetched: Promise<PageCachePrefetchResult | undefined>
  /**
   * Cancels the prefetch and closes the fault handler as `FaultHandler.close()` does. Never
   * rejects: `handler.closed` reports earlier failures.
   */
  close(options?: { readonly vm?: 'kill' | 'leave' | undefined }): Promise<void>
}

/** A restore by a fault handler. */
export interface UffdRestore extends AnyRestore {
  readonly backend: 'uffd'
  readonly handler: FaultHandler
  /** Same as `handler.prefetched`. */
  readonly prefetched: Promise<PrefetchResult>
}

/** A restore from a mapped memory file. */
export interface PageCacheRestore extends AnyRestore {
  readonly backend: 'page-cache'
  readonly handler: undefined
  /**
   * Result of the prefetch of the memory file and the disk images. Never rejects: a failure is
   * reported as a `warning` and only slows the VM down. A working-set file that does not exist yet is
   * no failure: the prefetch is complete, with 0 pages.
   */
  readonly prefetched: Promise<PageCachePrefetchResult>
}

const {
  snapshot: _,
  workingSet: __,
  trustWorkingSet: ___,
  record: ____,
  onBadWorkingSet: _____,
  ...handled
} = serveRules
export const restoreRules = {
  ...handled,
  socketPath: rules.socketPath,
  vmmPath: rules.path,
  maxBytes: rules.count,
}

/**
 * Executes a plan. When it resolves, load the snapshot with `memBackend`.
 *
 * @throws TypeError for invalid options, an object that is not a plan of `planRestore()`, or a plan
 * with a fault handler without `socketPath`.
 * @throws ReapTraceError as `serve()` does, for a plan with a fault handler.
 */
export async function restore<B extends Backend>(
  plan: RestorePlan<B>,
  options: RestoreOptions = {},
): Promise<B extends 'uffd' ? UffdRestore : PageCacheRestore> {
  planInternalsOf(plan)
  checkOptions('restore()', options, restoreRules)
  const { socketPath } = options
  if (plan.backend === 'uffd' && socketPath === undefined) {
    throw new TypeError('restore() needs a "socketPath" for a plan with a fault handler')
  }
  options.signal?.throwIfAborted()
  options.startSignal?.throwIfAborted()
  const restored =
    plan.backend === 'uffd'
      ? await restoreByHandler(plan, { ...options, socketPath: socketPath! })
      : restoreFromPageCache(plan, options)
  return restored as B extends 'uffd' ? UffdRestore : PageCacheRestore
}

/** Aborts with the caller's signals or at the end of the restore, then removes its listeners. */
function linkAbort(...given: (AbortSignal | undefined)[]): AbortController {
  const signals = given.filter((signal) => signal !== undefined)
  const ending = new AbortController()
  const removers = signals.map((signal) => onAbort(signal, (reason) => ending.abort(reason)))
  const removeListeners = () => {
    for (const remove of removers) remove()
  }
  // Not with the listener option `signal`: Node 20 reliably removes only one such listener per
  // target; for the others it depends on garbage collection.
  ending.signal.addEventListener('abort', removeListeners, { once: true })
  // The caller may have aborted in a listener for the 'listening' event.
  const aborted = signals.find((signal) => signal.aborted)
  if (aborted) ending.abort(aborted.reason)
  return ending
}

async function restoreByHandler(
  plan: RestorePlan,
  options: RestoreOptions & { readonly socketPath: string },
): Promise<UffdRestore> {
  const { vmmPath, maxBytes, ...served } = options
  const { workingSet, trustWorkingSet, onBadWorkingSet } = planInternalsOf(plan)
  const { snapshot, record, diskImages } = plan
  const handler = await serve({
    ...served,
    snapshot,
    workingSet,
    trustWorkingSet,
    record,
    onBadWorkingSet,
  })
  const ending = linkAbort(options.signal)
  handler.closed.catch(() => {}).finally(() => ending.abort(new Error('the restore has ended')))
  const disksPrefetched =
    diskImages.length > 0 && workingSet !== undefined
      ? prefetchOrWarn(options, (warn) =>
          prefetchFiles(workingSet, {
            memoryFile: undefined,
            diskImages,
            trustWorkingSet,
            maxBytes,
            signal: ending.signal,
            warn,
          }),
        )
      : Promise.resolve(undefined)
  const close = async (how?: { readonly vm?: 'kill' | 'leave' | undefined }) => {
    const closed = handler.close(how)
    ending.abort(new Error('the restore was closed'))
    await Promise.all([disksPrefetched, closed])
  }
  return {
    backend: 'uffd',
    memBackend: {
      backend_type: 'Uffd',
      backend_path: vmmPath ?? pathForVmm(handler.socketPath),
    },
    plan,
    reason: plan.reason,
    handler,
    prefetched: handler.prefetched,
    disksPrefetched,
    close,
    [Symbol.asyncDispose]: close,
  }
}

function restoreFromPageCache(plan: RestorePlan, options: RestoreOptions): PageCacheRestore {
  const ending = linkAbort(options.signal, options.startSignal)
  const prefetched = prefetchOrWarn(options, (warn) =>
    prefetch(plan, options.maxBytes, ending.signal, warn),
  )
  prefetched.finally(() => ending.abort()) // removes the listeners
  const close = async () => {
    ending.abort(new Error('the restore was closed'))
    await prefetched
  }
  return {
    backend: 'page-cache',
    memBackend: {
      backend_type: 'File',
      backend_path: options.vmmPath ?? resolve(plan.snapshot.memoryFile),
    },
    plan,
    reason: plan.reason,
    handler: undefined,
    prefetched,
    disksPrefetched: plan.diskImages.length > 0 ? prefetched : Promise.resolve(undefined),
    close,
    [Symbol.asyncDispose]: close,
  }
}

async function prefetch(
  plan: RestorePlan,
  maxBytes: number | undefined,
  signal: AbortSignal,
  warn: Warn,
): Promise<PageCachePrefetchResult> {
  const { workingSet, trustWorkingSet } = planInternalsOf(plan)
  const { refusal, residency, snapshot, diskImages } = plan
  if (refusal) throw refusal
  if (workingSet === undefined) return alreadyCached(0)
  if (residency?.missingPageCount === 0 && diskImages.length === 0) {
    return alreadyCached(residency.pageCount)
  }
  const { memoryFile } = snapshot
  return prefetchFiles(workingSet, {
    memoryFile,
    diskImages,
    trustWorkingSet,
    maxBytes,
    signal,
    warn,
  })
}

type Warn = (error: ReapTraceError) => void

/** Reports the failure of a prefetch as a warning: the VM runs anyway. */
async function prefetchOrWarn(
  options: Pick<RestoreOptions, 'onEvent'>,
  prefetch: (warn: Warn) => Promise<PageCachePrefetchResult>,
): Promise<PageCachePrefetchResult> {
  const warn = (error: ReapTraceError) => report(options, warning(error))
  return prefetch(warn).catch((error) => {
    const isMissingSet = error instanceof ReapTraceError && isMissing(error)
    if (error instanceof ReapTraceError && !isMissingSet) warn(error)
    return { ...alreadyCached(0), complete: isMissingSet }
  })
}
