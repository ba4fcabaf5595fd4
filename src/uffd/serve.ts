import { flags, native } from '../binding/addon.js'
import { toError } from '../binding/explain.js'
import type { FailureContext, NativeFailure } from '../binding/failure.js'
import type { ReapTraceError } from '../errors.js'
import { isWorkingSetError } from '../errors.js'
import { checkOptions, type OptionRule, oneOf, required, rules } from '../options.js'
import { PAGE } from '../page.js'
import { type CheckedPlan, planFor, proveByComparison } from '../working-set/plan.js'
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

  let plan: CheckedPlan | undefined
  let refusal: ReapTraceError | undefined
  const refuse = (error: unknown): undefined => {
    if (options.onBadWorkingSet === 'fail' || !isWorkingSetError(error)) throw error
    refusal = error
    report(options, { type: 'warning', error })
  }
  if (options.workingSet !== undefined) {
    plan = await planFor(options.workingSet, options.memoryFile, options.snapshotId).catch(refuse)
    options.signal?.throwIfAborted()
    const fails = stalePolicyOf(options) === 'fail'
    if (plan?.stale) {
      if (fails) throw plan.stale
      report(options, { type: 'warning', error: plan.stale })
    } else if (plan && fails && !plan.proof && plan.pageSize === PAGE) {
      plan = await proveByComparison(plan, options.memoryFile, options.signal).catch((error) => {
        if (error?.check === 'stale') throw error
        return refuse(error)
      })
    }
    options.signal?.throwIfAborted()
  }

  const { socketPath, memoryFile, connectTimeoutMs = 10_000, peerUid = -1 } = options
  const record = options.record ?? options.workingSet === undefined
  const workingSetPath = plan?.path || undefined
  const context: FailureContext = { socketPath, memoryFile, connectTimeoutMs, workingSetPath }
  const open = () =>
    native().open(
      socketPath,
      memoryFile,
      (record ? flags.record : 0) | (options.onFailure === 'leave-vm' ? flags.leaveVm : 0),
      peerUid,
      connectTimeoutMs,
      plan?.path ?? null,
      plan?.pageSize ?? 0,
      plan?.groups ?? null,
      plan?.extents ?? null,
      plan?.proof ?? null,
    )
  let opened = open()
  if (plan && !Array.isArray(opened)) {
    const error = toError(opened as NativeFailure, context)
    if (error.code === 'ERR_SNAPSHOT_MISMATCH') {
      plan = refuse(error)
      // The listener may have aborted.
      options.signal?.throwIfAborted()
      opened = open()
    }
  }
  if (!Array.isArray(opened)) throw toError(opened as NativeFailure, context)
  watchExit()
  const [id, session] = opened
  const handler = new Session(id, session, options, plan, refusal, context)
  report(options, { type: 'listening', socketPath })
  return handler
}
