import { setTimeout as sleep } from 'node:timers/promises'
import type { FaultHandler } from '../../index.js'

/** Time after COMMAND's end in which its VM may still be met, or be found to have gone. */
const GRACE_MS = { connected: 100, closed: 1000 } as const

/**
 * Waits for a step of a session whose COMMAND has ended: for a moment, or for its event if the step
 * is reached already. A busy machine may keep this thread from its core for longer than the moment.
 *
 * @throws what the promise of the step rejects with.
 */
export async function lateStep(
  handler: Pick<FaultHandler, 'connected' | 'closed' | 'times'>,
  step: keyof typeof GRACE_MS,
): Promise<void> {
  await Promise.race([handler[step], sleep(GRACE_MS[step], undefined, { ref: false })])
  if (handler.times()[step] !== undefined) await handler[step]
}
