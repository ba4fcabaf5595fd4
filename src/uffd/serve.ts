import { ChildProcess } from 'node:child_process'
import { unlessAborted } from '../abort.js'
import { flags, native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { type FailureContext, isFailure } from '../binding/failure.js'
import { isMissing, isWorkingSetError, ReapTraceError } from '../errors.js'
import { monotonicMs, report, warning } from '../events.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from '../options.js'
import { checkSnapshot, snapshotRule } from '../snapshot/snapshot.js'
import { internalsOf } from '../working-set/internals.js'
import { openSnapshot, proveByComparison } from '../working-set/open.js'
import { workingSetRule } from '../working-set/working-set.js'
import type { FaultHandler, ServeOptions } from './fault-handler.js'
import { Session, startEngine, watchExit } from './session.js'
import { openTelemetry, RestoreSpans } from './spans.js'
import { stalePolicyOf } from './stale-working-set.js'

const isPid = (value: unknown): boolean =>
  Number.isInteger(value) && (value as number) > 0 && (value as number) < 2 ** 31

/** Whether this process object is one whose start failed. */
const didNotStart = (vmm: unknown): boolean => vmm instanceof ChildProcess && vmm.pid === undefined

export const serveRules: Record<keyof ServeOptions, OptionRule> = {
  snapshot: snapshotRule,
  socketPath: required(rules.socketPath),
  workingSet: workingSetRule,
  heldOutPages: { expected: 'a Uint32Array', accepts: (value) => value instanceof Uint32Array },
  record: rules.boolean,
  timeline: rules.boolean,
  trustWorkingSet: rules.boolean,
  onBadWorkingSet: oneOf('on-demand', 'fail'),
  onStaleWorkingSet: oneOf('warn', 'rewrite', 'fail'),
  connectTimeoutMs: rules.milliseconds,
  readTimeoutMs: rules.milliseconds,
  onReadTimeout: oneOf('warn', 'fail'),
  vmm: {
    expected: 'a pid, or an object with a pid',
    accepts: (value) =>
      isPid(value) || isPid((value as { pid?: unknown } | null)?.pid) || didNotStart(value),
  },
  vm: oneOf('kill', 'leave'),
  peerUid: rules.count,
  startSignal: rules.signal,
  signal: rules.signal,
  onEvent: rules.callback,
}

/**
 * Binds a socket, waits for a VMM's userfaultfd handshake, and serves the guest's page faults on
 * native threads until the VM exits.
 *
 * Resolves when the socket listens: the snapshot can now be loaded with `socketPath` as its
 * backend. The pages of a working set are already being read.
 *
 * @throws TypeError for invalid options.
 * @throws ReapTraceError
 * - `ERR_SOCKET`: the socket cannot be bound,
 * - `ERR_SOURCE_READ`: the memory file cannot be opened,
 * - `ERR_VMM_EXITED`: the process passed as `vmm` did not start,
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`,
 *   `ERR_UNTRUSTED_FILE`: the working set cannot be used (only with `onBadWorkingSet: 'fail'`),
 * - `ERR_SNAPSHOT_MISMATCH` with the `check` `stale` or `snapshot-id`: the set holds the bytes of
 *   another snapshot (only with `onStaleWorkingSet: 'fail'`),
 * - `ERR_NATIVE_UNAVAILABLE`: the addon does not load.
 *
 * @example
 * const handler = await serve({ snapshot: { memoryFile }, socketPath, workingSet: 'vm.ws' })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path,
 *   mem_backend: { backend_type: 'Uffd', backend_path: socketPath },
 *   resume_vm: true,
 * })
 * await handler.closed
 */
export async function serve(options: ServeOptions): Promise<FaultHandler> {
  checkOptions('serve()', options, serveRules)
  checkSnapshot('serve()', options.snapshot)
  const { socketPath, snapshot, connectTimeoutMs = 10_000, peerUid = -1, vmm = 0 } = options
  if (didNotStart(vmm)) {
    throw new ReapTraceError('ERR_VMM_EXITED', 'the VMM did not start: it has no pid', {
      hint: "The 'error' event of the process passed as vmm says why.",
    })
  }
  const { memoryFile } = snapshot
  const throwIfAborted = () => {
    options.signal?.throwIfAborted()
    options.startSignal?.throwIfAborted()
  }
  throwIfAborted()
  // The caller may change it while files are opened.
  const heldOut = Uint32Array.from(options.heldOutPages ?? [])
  const startedMs = monotonicMs()
  const api = await openTelemetry()
  startEngine()

  let refusal: ReapTraceError | undefined
  const refuse = (error: unknown): void => {
    if (options.onBadWorkingSet === 'fail' || !isWorkingSetError(error)) throw error
    if (isMissing(error)) return
    refusal = error
    report(options, warning(error))
  }
  const opening = openSnapshot(memoryFile, options.workingSet, {
    snapshotId: snapshot.id,
    isTrusted: options.trustWorkingSet,
  }).catch((error) => {
    refuse(error)
    return openSnapshot(memoryFile, undefined)
  })
  const signals = [options.signal, options.startSignal]
  let opened = await unlessAborted(opening, signals, (late) => native().closeFiles(late.files))
  try {
    throwIfAborted()
    const fails = stalePolicyOf(options) === 'fail'
    if (opened.stale) {
      if (fails) throw opened.stale
      report(options, warning(opened.stale))
    } else if (fails) {
      const signal = eitherOf(options.signal, options.startSignal)
      opened = await proveByComparison(opened, memoryFile, signal).catch((error) => {
        if (error?.check === 'stale') throw error
        refuse(error)
        return { ...opened, set: undefined, provenBy: undefined }
      })
    }
    // The listener may have aborted.
    throwIfAborted()
  } catch (error) {
    native().closeFiles(opened.files)
    throw error
  }

  const spans =
    api &&
    new RestoreSpans(api, startedMs, {
      'reap_trace.memory_file': memoryFile,
      'reap_trace.socket': socketPath,
    })
  const set = opened.set && internalsOf(opened.set)
  const context: FailureContext = {
    socketPath,
    memoryFile,
    connectTimeoutMs,
    workingSetPath: set?.file?.path,
  }
  const session = native().open(
    socketPath,
    opened.files,
    set?.handle ?? null,
    opened.provenBy !== undefined,
    (options.record ? flags.record : 0) |
      (options.timeline ? flags.timeline : 0) |
      (options.vm === 'leave' ? flags.leaveVm : 0) |
      (options.onReadTimeout === 'fail' ? flags.failIfReadHangs : 0),
    peerUid,
    typeof vmm === 'number' ? vmm : vmm.pid!,
    connectTimeoutMs,
    options.readTimeoutMs ?? 30_000,
    heldOut,
  )
  if (isFailure(session)) throw toError(session, context)
  watchExit()
  const handler = new Session(session, options, opened, refusal !== undefined, context, spans)
  handler.announce()
  return handler
}

/** Combines the given signals. */
function eitherOf(...signals: (AbortSignal | undefined)[]): AbortSignal | undefined {
  const given = signals.filter((signal) => signal !== undefined)
  return given.length > 1 ? AbortSignal.any(given) : given[0]
}
