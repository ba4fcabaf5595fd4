import { resolve } from 'node:path'
import { isMissing, ReapTraceError } from '../errors.js'
import { report } from '../events.js'
import { checkOptions, rules } from '../options.js'
import {
  alreadyCached,
  type PageCachePrefetchResult,
  prefetchFiles,
} from '../page-cache/prefetch.js'
import type { FaultHandler, PrefetchResult, ServeOptions } from '../uffd/fault-handler.js'
import { serve, serveRules } from '../uffd/serve.js'
import type { Backend } from './backend.js'
import { findingsOf, type RestorePlan } from './plan.js'

/** What the plan has already. */
type Planned = 'snapshot' | 'workingSet' | 'record' | 'onBadWorkingSet'

/**
 * The options of `serve()` count for a plan with a fault handler. `onStaleWorkingSet` means
 * nothing to the page cache, which has the memory file's own bytes.
 */
export interface RestoreOptions extends Omit<ServeOptions, Planned | 'socketPath'> {
  /** Where the VMM meets the fault handler; needed for a plan whose `backend` is `uffd`. */
  readonly socketPath?: string | undefined
  /**
   * The path of the socket or of the memory file, whichever the plan's `backend` needs, as the VMM sees
   * it: one in a jail sees another path than the host.
   * @default the absolute path on this host
   */
  readonly vmmPath?: string | undefined
  /**
   * At most this many bytes are read into the page cache.
   * @default half of the memory that is available now
   */
  readonly maxBytes?: number | undefined
}

/** `mem_backend` of Firecracker's `PUT /snapshot/load`, as it stands there. */
export interface MemBackend {
  readonly backend_type: 'File' | 'Uffd'
  readonly backend_path: string
}

interface AnyRestore extends AsyncDisposable {
  /** What to load the snapshot with now. */
  readonly memBackend: MemBackend
  readonly plan: RestorePlan
  /** The plan's. */
  readonly reason: string
  /** What was done for the disk images; `undefined` without any. Never rejects. */
  readonly disksPrefetched: Promise<PageCachePrefetchResult | undefined>
  /**
   * Ends a prefetch that goes on, and a fault handler as `FaultHandler.close()` does. Never rejects: what
   * failed before, `handler.closed` says.
   */
  close(options?: { readonly vm?: 'kill' | 'leave' | undefined }): Promise<void>
}

/** A restore by a fault handler. */
export interface UffdRestore extends AnyRestore {
  readonly backend: 'uffd'
  readonly handler: FaultHandler
  /** The handler's. */
  readonly prefetched: Promise<PrefetchResult>
}

/** A restore from a mapped memory file. */
export interface PageCacheRestore extends AnyRestore {
  readonly backend: 'page-cache'
  readonly handler: undefined
  /**
   * The prefetch of the memory file and of the disk images. Never rejects: a `warning` says what stopped
   * it, and the VM runs without it, more slowly.
   */
  readonly prefetched: Promise<PageCachePrefetchResult>
}

const { snapshot: _, workingSet: __, record: ___, onBadWorkingSet: ____, ...handled } = serveRules
const restoreRules = {
  ...handled,
  socketPath: rules.path,
  vmmPath: rules.path,
  maxBytes: rules.count,
}

/**
 * Carries out a plan: load the snapshot with `memBackend` when this resolves.
 *
 * @throws TypeError for options that make no sense, no plan of `planRestore()`, or no `socketPath` for a plan
 * with a fault handler.
 * @throws ReapTraceError what `serve()` throws, for a plan with a fault handler.
 */
export async function restore<B extends Backend>(
  plan: RestorePlan<B>,
  options: RestoreOptions = {},
): Promise<B extends 'uffd' ? UffdRestore : PageCacheRestore> {
  findingsOf(plan)
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

/** Aborts when the restore ends, and with the caller's signals, which it lets go of then. */
function linkAbort(...given: (AbortSignal | undefined)[]): AbortController {
  const signals = given.filter((signal) => signal !== undefined)
  const ending = new AbortController()
  const pass = ({ target }: Event) => ending.abort((target as AbortSignal).reason)
  const letGo = () => {
    for (const signal of signals) signal.removeEventListener('abort', pass)
  }
  for (const signal of signals) signal.addEventListener('abort', pass, { once: true })
  // Not with the listeners' option `signal`: Node 20 keeps one such listener of a target, and for the
  // others it depends on the garbage collection whether they are taken away.
  ending.signal.addEventListener('abort', letGo, { once: true })
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
  const { workingSet, onBadWorkingSet } = findingsOf(plan)
  const { snapshot, record, diskImages } = plan
  const handler = await serve({ ...served, snapshot, workingSet, record, onBadWorkingSet })
  const ending = linkAbort(options.signal)
  handler.closed.catch(() => {}).finally(() => ending.abort(new Error('the restore has ended')))
  const disksPrefetched =
    diskImages.length > 0 && workingSet !== undefined
      ? prefetchOrWarn(options, (warn) =>
          prefetchFiles(workingSet, {
            memoryFile: undefined,
            diskImages,
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
      backend_path: vmmPath ?? resolve(handler.socketPath),
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
  prefetched.finally(() => ending.abort()) // lets go of the caller's signals
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
  const { workingSet } = findingsOf(plan)
  const { refusal, residency, snapshot, diskImages } = plan
  if (refusal) throw refusal
  if (workingSet === undefined) return alreadyCached(0)
  if (residency?.missingPageCount === 0 && diskImages.length === 0) {
    return alreadyCached(residency.pageCount)
  }
  const { memoryFile } = snapshot
  return prefetchFiles(workingSet, { memoryFile, diskImages, maxBytes, signal, warn })
}

type Warn = (error: ReapTraceError) => void

/** Reports the failure of a prefetch as a warning: the VM runs all the same. */
async function prefetchOrWarn(
  options: Pick<RestoreOptions, 'onEvent'>,
  prefetch: (warn: Warn) => Promise<PageCachePrefetchResult>,
): Promise<PageCachePrefetchResult> {
  const warn = (error: ReapTraceError) => report(options, { type: 'warning', error })
  return prefetch(warn).catch((error) => {
    const isMissingSet = error instanceof ReapTraceError && isMissing(error)
    if (error instanceof ReapTraceError && !isMissingSet) warn(error)
    return { ...alreadyCached(0), complete: isMissingSet }
  })
}
