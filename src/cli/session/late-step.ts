import { setTimeout as sleep } from 'node:timers/promises'
import type { FaultHandler } from '../../index.js'

/** Time after COMMAND's end for its VM to connect, or for the end of its VM to be noticed. */
const GRACE_MS = { connected: 100, closed: 1000 } as const

/**
 * Waits a moment for a step of a session whose COMMAND has ended, and for its event if it is reached:
 * a busy machine may delay this thread for longer than the moment.
 *
 * @throws the rejection of the step's promise.
 */
export async function lateStep(
  handler: Pick<FaultHandler, 'connected' | 'closed' | 'times'>,
  step: keyof typeof GRACE_MS,
): Promise<void> {
  await Promise.race([handler[step], sleep(GRACE_MS[step], undefined, { ref: false })])
  if (handler.times()[step] !== undefined) await handler[step]
}
