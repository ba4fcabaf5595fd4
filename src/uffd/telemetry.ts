import { channel } from 'node:diagnostics_channel'
import type { Snapshot } from '../snapshot/snapshot.js'
import type { FaultHandler, ServeEvent } from './fault-handler.js'

/** Message on the `node:diagnostics_channel` named `reap-trace:restore`: an event of a session. */
export interface RestoreMessage {
  readonly handler: FaultHandler
  readonly snapshot: Snapshot
  readonly event: ServeEvent
}

const restores = channel('reap-trace:restore')

/** Publishes an event for subscribers that did not open the session themselves. */
export function publish(message: RestoreMessage): void {
  if (restores.hasSubscribers) restores.publish(message)
}
