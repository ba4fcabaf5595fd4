import { native } from './addon.js'
import { toError } from './explain.js'
import { isFailure } from './failure.js'

/**
 * An exclusive lock on a file, among all processes of this host. The kernel releases it at the end
 * of the process, and the engine at the end of the worker thread or when it is garbage-collected.
 */
export interface Lock {
  /** Releases the lock; later calls have no effect. */
  release(): void
}

/**
 * Takes the lock without waiting for its owner, on a separate thread. Creates the file, mode 0600,
 * if it is missing. A file that is removed takes its lock with it.
 *
 * @returns `undefined` if the lock is held, by another process or by this one.
 * @throws ReapTraceError
 * - `ERR_STORE_IO`: the file cannot be opened or locked,
 * - `ERR_UNTRUSTED_FILE`: another user may write to it.
 */
export async function tryLock(path: string): Promise<Lock | undefined> {
  const lock = await native().tryLock(path)
  if (lock === null) return undefined
  if (isFailure(lock)) throw toError(lock, { storePath: path })
  return { release: () => native().unlock(lock) }
}
