import type { FaultHandler } from '../../index.js'

/** What a restore from a store learns; nothing without these. */
export interface Lesson {
  /**
   * Marks the application as ready; only the first mark counts. Without a mark of COMMAND, its
   * successful end or that of the VM is the mark.
   */
  readonly ready?: (atMs: number) => unknown
  /** Settles once the lesson is saved; `undefined` if there is none. */
  readonly learned?: () => Promise<unknown> | undefined
}

/** What a session serves. With a `ready`, its handler is marked by that. */
export interface Served extends Lesson {
  readonly handler: FaultHandler
}
