import { flags, native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import { type FailureContext, isFailure } from '../binding/failure.js'
import type { ReapTraceError } from '../errors.js'
import { isWorkingSetError } from '../errors.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from '../options.js'
import { internalsOf } from '../working-set/internals.js'
import { openSnapshot, proveByComparison } from '../working-set/open.js'
import { workingSetRule } from '../working-set/working-set.js'
import type { FaultHandler, ServeOptions } from './fault-handler.js'
import { report, Session, startEngine, watchExit } from './session.js'
import { stalePolicyOf } from './stale-working-set.js'

export const serveRules: Record<keyof ServeOptions, OptionRule> = {
  socketPath: required(rules.path),
  memoryFile: required(rules.path),
  workingSet: workingSetRule,
  record: rules.boolean,
  onBadWorkingSet: oneOf('on-demand', 'fail'),
  onStaleWorkingSet: oneOf('warn', 'rewrite', 'fail'),
  snapshotId: rules.name,
  connectTimeoutMs: rules.milliseconds,
  onFailure: oneOf('kill-vm', 'leave-vm'),
  peerUid: rules.count,
  signal: rules.signal,
  onEvent: rules.callback,
}

/**
 * Binds a socket, waits there for a VMM's userfaultfd handshake, and serves the guest's page faults
 * on native threads until the VM ends.
 *
 * Resolves when the socket listens: the snapshot may now be loaded with `socketPath` as its backend.
 * With a working set, its pages are being read already.
 *
 * @throws TypeError for options that make no sense.
 * @throws ReapTraceError
 * - `ERR_SOCKET`: the socket cannot be bound,
 * - `ERR_SOURCE_READ`: the memory file cannot be opened,
 * - `ERR_WORKING_SET_INVALID`, `ERR_WORKING_SET_IO`, `ERR_SNAPSHOT_MISMATCH`: the working set cannot
 *   be used (only with `onBadWorkingSet: 'fail'`),
 * - `ERR_SNAPSHOT_MISMATCH` with the `check` `stale` or `snapshot-id`: it holds the bytes of another
 *   snapshot (only with `onStaleWorkingSet: 'fail'`),
 * - `ERR_NATIVE_UNAVAILABLE`: the addon does not load.
 *
 * @example
 * const handler = await serve({ socketPath, memoryFile, workingSet: 'vm.ws' })
 * await firecracker.put('/snapshot/load', {
 *   snapshot_path,
 *   mem_backend: { backend_type: 'Uffd', backend_path: socketPath },
 *   resume_vm: true,
 * })
 * await handler.closed
 */
export async function serve(options: ServeOptions): Promise<FaultHandler> {
  checkOptions('serve()', options, serveRules)
  options.signal?.throwIfAborted()
  startEngine()

  const { socketPath, memoryFile, connectTimeoutMs = 10_000, peerUid = -1, signal } = options
  let refusal: ReapTraceError | undefined
  const refuse = (error: unknown): void => {
    if (options.onBadWorkingSet === 'fail' || !isWorkingSetError(error)) throw error
    refusal = error
    report(options, { type: 'warning', error })
  }
  let snapshot = await openSnapshot(memoryFile, options.workingSet, options.snapshotId).catch(
    (error) => {
      refuse(error)
      return openSnapshot(memoryFile, undefined)
    },
  )
  try {
    signal?.throwIfAborted()
    const fails = stalePolicyOf(options) === 'fail'
    if (snapshot.stale) {
      if (fails) throw snapshot.stale
      report(options, { type: 'warning', error: snapshot.stale })
    } else if (fails) {
      snapshot = await proveByComparison(snapshot, memoryFile, signal).catch((error) => {
        if (error?.check === 'stale') throw error
        refuse(error)
        return { ...snapshot, set: undefined, provenBy: undefined }
      })
    }
    // The listener may have aborted.
    signal?.throwIfAborted()
  } catch (error) {
    native().closeFiles(snapshot.files)
    throw error
  }

  const { set } = snapshot
  const record = options.record ?? options.workingSet === undefined
  const internals = set && internalsOf(set)
  const workingSetPath = internals?.file?.path
  const context: FailureContext = { socketPath, memoryFile, connectTimeoutMs, workingSetPath }
  const opened = native().open(
    socketPath,
    snapshot.files,
    internals?.handle ?? null,
    snapshot.provenBy !== undefined,
    (record ? flags.record : 0) | (options.onFailure === 'leave-vm' ? flags.leaveVm : 0),
    peerUid,
    connectTimeoutMs,
  )
  if (isFailure(opened)) throw toError(opened, context)
  watchExit()
  const [id, session] = opened
  const handler = new Session(id, session, options, snapshot, refusal, context)
  report(options, { type: 'listening', socketPath })
  return handler
}
